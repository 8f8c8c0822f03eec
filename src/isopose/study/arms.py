"""The arms of the study: named configurations, each of which changes one aspect of a preset.

The paper's results are stored beside the arm that repeats its row: 80 children of the authors' own, 512 x 512
pixels, one GPU. Reports show them as the paper's, separate from the study's own measurements.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PaperTable = Literal[1, 2, 3]


@dataclass(frozen=True)
class Published:
    """A row of the paper's tables: Dice in percent as (mean, standard deviation).

    Args:
        name: name of the row in the paper.
        kidney: Dice of the kidney.
        tumor: Dice of the tumor.
        hours: training time, if the paper gives it.
        memory_gb: memory allocated for the U-Net, if the paper gives it.
    """

    name: str
    kidney: tuple[float, float]
    tumor: tuple[float, float]
    hours: float | None = None
    memory_gb: float | None = None


@dataclass(frozen=True)
class Peer:
    """How an arm uses nnU-Net v2 itself.

    Args:
        configuration: of its plans: ``2d`` or ``3d_fullres``.
        planner: name of its planner class.
        augmented: use its own augmentation and mirrored averaging; False: neither.
        posed: use this package's trainer, which normalizes pose and size inside nnU-Net's network.
        homogenized: train and predict on the dataset that ``isopose homogenize`` writes; predictions are
            restored to the scans' own grids.
        turned: keep rotation and scaling in its augmentation.
    """

    configuration: str = "2d"
    planner: str = "ExperimentPlanner"
    augmented: bool = True
    posed: bool = False
    homogenized: bool = False
    turned: bool = True

    @property
    def store(self) -> str:
        """Prefix of the folder of nnU-Net's raw and preprocessed data."""
        return "nnunet-homogenized" if self.homogenized else "nnunet"


@dataclass(frozen=True)
class Arm:
    """One way to train and predict.

    Args:
        name: name in commands and folders.
        title: name in tables.
        table: the paper's table that it belongs to.
        settings: ``section.key=value``, applied after the preset and the user's own settings.
        source: whether it starts from, or is (:data:`SOURCE`), the model of the source dataset.
        published: the paper's row.
        peer: nnU-Net v2 instead of this package's networks; then only the number of steps is taken from the
            settings.
    """

    name: str
    title: str
    table: PaperTable
    settings: tuple[str, ...]
    source: bool = False
    published: Published | None = None
    peer: Peer | None = None


#: No mirroring and no augmentation, so that arms differ only in the aspect they are named for.
_NO_AUGMENTATION = ("unet.mirror=0", "predict.mirror=false", "unet.augmentation=off")
_NO_HOMOGENIZATION = (
    "pose.start=identity",
    "pose.learned=false",
    "crop.enabled=false",
    "unet.input=full",
    *_NO_AUGMENTATION,
)
_NO_JITTER = ("unet.pose_jitter=0",)
_PLAIN = (*_NO_HOMOGENIZATION, *_NO_JITTER)
_AUGMENTED = (*_PLAIN, "unet.augmentation=nnunet")
_POSED = ("crop.enabled=false", "unet.input=full", *_NO_AUGMENTATION)

#: Arms without training: the source's model on the original scans, and on scans homogenized to the pose and
#: size of that model's reference.
DIRECT, DIRECT_HOMOGENIZED = "direct", "direct-homogenized"
UNTRAINED = (DIRECT, DIRECT_HOMOGENIZED)

#: The arm with which the paper compares its method.
BASELINE = "augmented"
#: Further comparisons, as an arm and the arm it is compared with: the effect of the learned pose, of
#: mirroring, of the crop and of its size, and of homogenization before and inside nnU-Net.
FURTHER_COMPARISONS: tuple[tuple[str, str], ...] = (
    ("pose", "moments"),
    ("pose-mirror", "pose"),
    ("default", "pose"),
    ("default", "nnunet"),
    ("crop-full", "pose"),
    ("crop-half", "pose"),
    ("crop-half", "crop-full"),
    ("pose", "nnunet"),
    ("crop-half", "nnunet"),
    ("nnunet-homogenized", "nnunet"),
    ("nnunet-homogenized-unturned", "nnunet"),
    ("nnunet-homogenized-unturned", "nnunet-homogenized"),
    ("nnunet-plain", "nnunet"),
    ("nnunet-resenc", "nnunet"),
    ("nnunet-pose", "nnunet"),
    (DIRECT_HOMOGENIZED, DIRECT),
)
#: The model from which transfer learning starts, trained on other patients.
SOURCE = Arm("source", "U-Net of the source, augmented", 1, _AUGMENTED, source=True)

ARMS: tuple[Arm, ...] = (
    Arm(
        "plain",
        "U-Net, no augmentation",
        2,
        _PLAIN,
        published=Published("nnUNet", (88.07, 5.61), (78.14, 26.19), 22.0, 10.05),
    ),
    Arm("jitter", "U-Net, jitter of the pose arms, no pose", 2, _NO_HOMOGENIZATION),
    Arm(
        "augmented",
        "U-Net, nnU-Net's augmentation",
        2,
        _AUGMENTED,
        published=Published("nnUNet (+ data augmentation)", (88.91, 5.08), (85.52, 24.65), 33.0, 10.05),
    ),
    Arm("moments", "pose by moments + U-Net", 2, ("pose.start=moments", "pose.learned=false", *_POSED)),
    Arm(
        "pose",
        "STN pose-size + U-Net",
        2,
        _POSED,
        published=Published("STN pose-size + nnUNet", (88.01, 6.25), (87.12, 23.39), 25.0),
    ),
    Arm(
        "pose-mirror",
        "STN pose-size + U-Net, canonical mirroring",
        2,
        (*_POSED, "unet.mirror=0.5", "predict.mirror=true"),
    ),
    Arm("nnunet", "nnU-Net v2 2D", 2, _AUGMENTED, peer=Peer()),
    Arm("nnunet-plain", "nnU-Net v2 2D, no augmentation", 2, _AUGMENTED, peer=Peer(augmented=False)),
    Arm("nnunet-homogenized", "nnU-Net v2 2D, homogenized", 2, _AUGMENTED, peer=Peer(homogenized=True)),
    Arm(
        "nnunet-homogenized-unturned",
        "nnU-Net v2 2D, homogenized, augmented without rotation and scaling",
        2,
        _AUGMENTED,
        peer=Peer(homogenized=True, turned=False),
    ),
    Arm(
        "nnunet-pose", "nnU-Net v2 2D, pose and size normalized inside", 2, _AUGMENTED, peer=Peer(posed=True)
    ),
    Arm("nnunet-resenc", "nnU-Net v2 2D, ResEnc M", 2, _AUGMENTED, peer=Peer(planner="nnUNetPlannerResEncM")),
    Arm("nnunet-3d", "nnU-Net v2 3D", 2, _AUGMENTED, peer=Peer("3d_fullres")),
    Arm(
        "crop-full",
        "STN pose-size + STN crop + U-Net, full size",
        3,
        ("unet.input=full", *_NO_AUGMENTATION),
        published=Published("STNp-s + STNcrop + nnUNet 512", (88.84, 7.79), (84.25, 31.15), 28.0, 10.05),
    ),
    Arm(
        "crop-half",
        "STN pose-size + STN crop + U-Net, half size",
        3,
        ("unet.input=half", *_NO_AUGMENTATION),
        published=Published("STNp-s + STNcrop + nnUNet 256", (86.71, 19.36), (84.15, 30.11), 19.5, 3.52),
    ),
    Arm(
        "crop-quarter",
        "STN pose-size + STN crop + U-Net, quarter size",
        3,
        ("unet.input=quarter", *_NO_AUGMENTATION),
    ),
    Arm("default", "unchanged preset", 3, ()),
    Arm(
        DIRECT,
        "direct inference with the source's model",
        1,
        _AUGMENTED,
        source=True,
        published=Published("Direct Inference (weights frozen)", (20.83, 35.55), (18.29, 35.73)),
    ),
    Arm(
        DIRECT_HOMOGENIZED,
        "direct inference with the source's model, patients homogenized to its reference",
        1,
        _AUGMENTED,
        source=True,
    ),
    Arm(
        "first2-last2",
        "fine-tuned: first two encoder, last two decoder levels",
        1,
        (*_AUGMENTED, "train.parts=first2-last2"),
        source=True,
        published=Published(
            "Fine-Tuning (first 2 blocks encoder and last 2 decoder)", (53.38, 25.84), (51.05, 31.76)
        ),
    ),
    Arm(
        "decoder",
        "fine-tuned: entire decoder",
        1,
        (*_AUGMENTED, "train.parts=decoder"),
        source=True,
        published=Published("Fine-Tuning (entire decoder)", (81.75, 7.18), (75.79, 23.24)),
    ),
    Arm(
        "all",
        "fine-tuned: entire network",
        1,
        (*_AUGMENTED, "train.parts=all"),
        source=True,
        published=Published("Fine-Tuning (entire network)", (84.99, 6.38), (81.08, 23.01)),
    ),
)

BY_NAME: Mapping[str, Arm] = {arm.name: arm for arm in ARMS}
