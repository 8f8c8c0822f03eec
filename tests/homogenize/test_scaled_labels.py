"""Labels stored with a scale factor are rounded when homogenized and when restored, each with a message."""

import nibabel as nib
import numpy as np
from patients import write_dataset

from isopose.homogenize.dataset import homogenize, open_input
from isopose.homogenize.restore import restore
from isopose.io.images import read_labels
from isopose.presets import homogenize_config
from reporters import RecordingReporter


def scale(path):
    """Rewrite labels as nibabel writes floating-point ones as uint16."""
    image = nib.load(path)
    values = image.get_fdata()
    header = image.header.copy()
    header.set_data_dtype("uint16")
    header.set_slope_inter(np.nan, np.nan)
    nib.save(nib.Nifti1Image(values, image.affine, header), path)
    again = nib.load(path).get_fdata()
    assert 0 < np.abs(again - np.rint(again)).max() < 1e-3


def test_scaled_labels_are_homogenized_and_restored(tmp_path):
    plain = write_dataset(tmp_path / "plain", {"a": "Tr"})
    source = write_dataset(tmp_path / "source", {"a": "Tr"})
    scale(source / "labelsTr" / "a.nii.gz")
    homogenized = {}
    for root in (plain, source):
        reporter = RecordingReporter()
        (outcome,) = homogenize(
            open_input(root), tmp_path / f"{root.name}-same", homogenize_config(size=64), reporter=reporter
        )
        assert outcome.problem is None
        assert sum("were rounded" in line for line in reporter.lines) == (root == source)
        homogenized[root] = tmp_path / f"{root.name}-same" / "labelsTr" / "a.nii.gz"
    np.testing.assert_array_equal(
        read_labels(homogenized[source]).array, read_labels(homogenized[plain]).array
    )

    scale(homogenized[source])
    back = {}
    for root in (plain, source):
        reporter = RecordingReporter()
        (one,) = restore(
            homogenized[root].parent,
            homogenized[root].parents[1],
            tmp_path / root.name / "b",
            reporter=reporter,
        )
        assert one.problem is None
        assert any("were rounded" in line for line in reporter.lines) == (root == source)
        # Of the labels that were homogenized, and of those that were predicted.
        assert sum("were rounded" in line for line in one.record["warnings"]) == (2 if root == source else 0)
        back[root] = read_labels(tmp_path / root.name / "b" / "a.nii.gz")
    np.testing.assert_array_equal(back[source].array, back[plain].array)
