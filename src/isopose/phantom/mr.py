"""MR of phantoms: tissues in one of four contrasts, the coils' bias field, Rician noise.

Brightness is a fraction of the brightest tissue's. It is drawn around usual values for a spoiled gradient
echo (T1) and a fast spin echo (T2), with fat bright or suppressed; the values are plausible, not measured.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from isopose.phantom.anatomy import Anatomy
from isopose.phantom.shapes import Waves
from isopose.phantom.tones import Tones

Sequence = Literal["t1", "t1-fatsat", "t2", "t2-fatsat"]
SEQUENCES: tuple[Sequence, ...] = get_args(Sequence)

#: Organs that look alike in CT are drawn at densities (HU) of their own, so that they can be told apart.
KIDNEY_HU, TUMOR_HU, LIVER_HU, SPLEEN_HU, BLOOD_HU, APART_HU = 2000.0, 2300.0, 2600.0, 2800.0, 3000.0, 100.0
#: Standard deviation of a tissue's brightness between patients, as a fraction of it.
SPREAD = 0.12
#: Brightness of suppressed fat, as a fraction of unsuppressed fat's.
SUPPRESSED = (0.1, 0.3)
#: Usual brightness of tissues.
BRIGHTNESS = {
    "t1": {"lung": 0.06, "fat": 1.0, "fluid": 0.18, "muscle": 0.38, "wall": 0.42, "disc": 0.33,
           "marrow": 0.60, "bone": 0.06, "skin": 0.35, "renal cortex": 0.50, "renal medulla": 0.36,
           "tumor": 0.32, "necrosis": 0.20, "liver": 0.55, "spleen": 0.38, "blood": 0.12},
    "t2": {"lung": 0.06, "fat": 0.80, "fluid": 1.0, "muscle": 0.18, "wall": 0.35, "disc": 0.50,
           "marrow": 0.45, "bone": 0.05, "skin": 0.25, "renal cortex": 0.55, "renal medulla": 0.72,
           "tumor": 0.50, "necrosis": 0.90, "liver": 0.27, "spleen": 0.52, "blood": 0.10},
}  # fmt: skip


@dataclass(frozen=True)
class MrScan:
    """Parameters of the MR scan of one phantom.

    Args:
        sequence: its contrast.
        tones: brightness of the tissues.
        bias: the logarithm of the coils' sensitivity, a field in mm.
        bias_sd: its standard deviation.
        noise: standard deviation of the noise in each of the two channels, as a fraction of the brightest
            tissue.
        gain: stored value of the brightest tissue.
    """

    sequence: Sequence
    tones: Tones
    bias: Waves
    bias_sd: float
    noise: float
    gain: float


def sample_mr(rng: np.random.Generator, width_mm: float, sequence: Sequence | None = None) -> MrScan:
    """Draw the MR scan of a patient.

    Args:
        rng: source of randomness.
        width_mm: of the trunk; the bias field varies over one to four times as much.
        sequence: its contrast; None: one of the four.
    """
    sequence = sequence or SEQUENCES[int(rng.integers(len(SEQUENCES)))]
    name, _, suppressed = sequence.partition("-")
    usual = BRIGHTNESS[name]
    shown = {tissue: value * float(np.exp(rng.normal(0.0, SPREAD))) for tissue, value in usual.items()}
    if suppressed:
        shown["fat"] *= float(rng.uniform(*SUPPRESSED))
        shown["marrow"] *= float(rng.uniform(0.3, 0.6))
    return MrScan(
        sequence,
        tones_of(shown),
        Waves.sample(rng, 5, width_mm, 4.0 * width_mm),
        float(rng.uniform(0.05, 0.35)),
        float(rng.uniform(0.01, 0.05)),
        float(rng.uniform(300.0, 3000.0)),
    )


def tones_of(shown: dict[str, float]) -> Tones:
    """Return the brightness of every density at which :func:`drawn_for_mr` and the painters draw."""
    points = [(-960.0, 0.0), (-840.0, shown["lung"]), (-330.0, shown["lung"]), (-130.0, shown["fat"])]
    points += [(-55.0, shown["fat"]), (0.0, shown["fluid"]), (30.0, shown["fluid"])]
    points += [(50.0, shown["muscle"]), (65.0, shown["muscle"]), (80.0, shown["wall"]), (86.0, shown["disc"])]
    points += [
        (115.0, shown["disc"]),
        (170.0, shown["marrow"]),
        (330.0, shown["marrow"]),
        (480.0, shown["bone"]),
    ]
    points += [(1500.0, shown["bone"])]
    pairs = (
        (KIDNEY_HU, "renal medulla"),
        (KIDNEY_HU + APART_HU, "renal cortex"),
        (TUMOR_HU - APART_HU, "necrosis"),
        (TUMOR_HU, "tumor"),
        (LIVER_HU, "liver"),
        (SPLEEN_HU, "spleen"),
        (BLOOD_HU, "blood"),
    )
    points += [(drawn, shown[tissue]) for drawn, tissue in pairs]
    drawn, brightness = zip(*points, strict=True)
    return Tones(drawn, brightness, shown["skin"])


def drawn_for_mr(anatomy: Anatomy) -> Anatomy:
    """Return a patient whose organs are drawn at the densities that :func:`tones_of` knows."""
    vessels = tuple(tube if tube.name == "crus" else replace(tube, hu=BLOOD_HU) for tube in anatomy.vessels)
    return replace(
        anatomy,
        liver_hu=LIVER_HU,
        spleen=replace(anatomy.spleen, hu=SPLEEN_HU, mottle=0.0),
        kidneys=tuple(  # type: ignore[arg-type]
            replace(one, cortex_hu=KIDNEY_HU + APART_HU, medulla_hu=KIDNEY_HU) for one in anatomy.kidneys
        ),
        tumor=replace(anatomy.tumor, hu=TUMOR_HU, necrosis_hu=TUMOR_HU - APART_HU),
        vessels=vessels,
    )


def acquire(
    scan: MrScan, brightness: np.ndarray, plane: np.ndarray, rng: np.random.Generator, *, noise: bool = True
) -> np.ndarray:
    """Return the stored values of one slice, with bias field, Rician noise and gain.

    Args:
        scan: parameters of the MR scan.
        brightness: ``(rows, columns)``, as fractions of the brightest tissue's.
        plane: ``(4, 4)`` LPS mm from index of this slice.
        rng: source of the noise.
        noise: whether to add noise.

    Returns:
        int16 ``(rows, columns)``.
    """
    seen = brightness * np.exp(scan.bias_sd * scan.bias.on_plane(plane, brightness.shape))
    if noise:
        seen = rician(seen, scan.noise, rng)
    stored: np.ndarray = np.rint(scan.gain * seen).clip(0, 32767).astype(np.int16)
    return stored


def rician(seen: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Return the magnitude of brightness with noise in both channels (Rician noise).

    Args:
        seen: brightness of any shape, as fractions of the brightest tissue's.
        noise: standard deviation in each channel, in the same unit.
        rng: source of the noise.
    """
    real, imaginary = rng.normal(0.0, noise, (2, *seen.shape))
    measured: np.ndarray = np.hypot(seen + real, imaginary)
    return measured
