"""Translate label names to SNOMED CT codes for DICOM objects."""

from collections.abc import Iterable
from dataclasses import dataclass

from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

from isopose.labels import words_of

#: Words that name an organ; longer ones come before those that they contain.
ORGANS = {
    ("adrenal", "gland"): codes.SCT.AdrenalGland,
    ("inferior", "vena", "cava"): codes.SCT.InferiorVenaCava,
    ("lymph", "node"): codes.SCT.LymphNode,
    ("portal", "vein"): codes.SCT.PortalVein,
    ("renal", "artery"): codes.SCT.RenalArtery,
    ("renal", "vein"): codes.SCT.RenalVein,
    ("small", "bowel"): codes.SCT.SmallIntestine,
    ("small", "intestine"): codes.SCT.SmallIntestine,
    ("spinal", "cord"): codes.SCT.SpinalCord,
    ("adrenal",): codes.SCT.AdrenalGland,
    ("aorta",): codes.SCT.Aorta,
    ("bladder",): codes.SCT.Bladder,
    ("colon",): codes.SCT.Colon,
    ("duodenum",): codes.SCT.Duodenum,
    ("esophagus",): codes.SCT.Esophagus,
    ("gallbladder",): codes.SCT.Gallbladder,
    ("heart",): codes.SCT.Heart,
    ("kidney",): codes.SCT.Kidney,
    ("kidneys",): codes.SCT.Kidney,
    ("liver",): codes.SCT.Liver,
    ("lung",): codes.SCT.Lung,
    ("oesophagus",): codes.SCT.Esophagus,
    ("pancreas",): codes.SCT.Pancreas,
    ("prostate",): codes.SCT.Prostate,
    ("rectum",): codes.SCT.Rectum,
    ("renal",): codes.SCT.Kidney,
    ("spleen",): codes.SCT.Spleen,
    ("stomach",): codes.SCT.Stomach,
    ("ureter",): codes.SCT.Ureter,
}
#: Words that name a finding in an organ.
FINDINGS = {
    "tumor": codes.SCT.Neoplasm,
    "tumour": codes.SCT.Neoplasm,
    "tumors": codes.SCT.Neoplasm,
    "tumours": codes.SCT.Neoplasm,
    "neoplasm": codes.SCT.Neoplasm,
    "cancer": codes.SCT.Neoplasm,
    "mass": codes.SCT.Mass,
    "lesion": codes.SCT.Lesion,
    "cyst": codes.SCT.Cyst,
    "cysts": codes.SCT.Cyst,
}
SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}


@dataclass(frozen=True)
class Meaning:
    """The codes of one label.

    Args:
        name: the label's name.
        category: anatomical structure, or morphologically abnormal structure.
        kind: the organ or the finding; an unspecific anatomical structure for unknown names.
        organ: the organ of a finding, if known.
        side: left or right, if the name contains it.
    """

    name: str
    category: CodedConcept
    kind: CodedConcept
    organ: CodedConcept | None
    side: CodedConcept | None

    @property
    def finding(self) -> bool:
        """Whether it is a finding, and not anatomy."""
        return self.category.value == codes.SCT.MorphologicallyAbnormalStructure.value


def meanings(names: Iterable[str]) -> list[Meaning]:
    """Return the codes of a dataset's labels.

    A finding whose name contains no organ is assigned to the only organ among the labels, if there is exactly
    one: ``tumor`` beside ``kidney`` is a neoplasm of the kidney.
    """
    names = list(names)
    words = [words_of(name) for name in names]
    organs = [_organ(name_words) for name_words in words]
    named = {organ.value: organ for organ in organs if organ is not None}
    only_organ = next(iter(named.values())) if len(named) == 1 else None
    result = []
    for name, name_words, organ in zip(names, words, organs, strict=True):
        finding = next((FINDINGS[word] for word in name_words if word in FINDINGS), None)
        side = next((SIDES[word] for word in name_words if word in SIDES), None)
        category = codes.SCT.AnatomicalStructure
        kind = organ or codes.SCT.AnatomicalStructure
        if finding is not None:
            category, kind = codes.SCT.MorphologicallyAbnormalStructure, finding
            organ = organ or only_organ
        result.append(
            Meaning(name, *map(CodedConcept.from_code, (category, kind)), *map(_concept, (organ, side)))
        )
    return result


def _organ(words: list[str]) -> CodedConcept | None:
    for wanted, code in ORGANS.items():
        starts = range(len(words) - len(wanted) + 1)
        if any(tuple(words[first : first + len(wanted)]) == wanted for first in starts):
            return code
    return None


def _concept(code: CodedConcept | None) -> CodedConcept | None:
    return None if code is None else CodedConcept.from_code(code)
