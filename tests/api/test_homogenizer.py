import numpy as np
import pytest
import SimpleITK as sitk

import isopose
from isopose import Homogenizer
from isopose.errors import InputError
from isopose.geometry.pose import LOG_SCALE_X
from isopose.homogenize.dataset import homogenize, open_input
from isopose.homogenize.reference import outline_of_scan
from isopose.homogenize.transform import Transform
from isopose.io.images import read_labels, read_volume, to_sitk, write_image
from isopose.phantom import write_cohort
from isopose.presets import homogenize_config
from isopose.progress import Silent
from test_benchmarks import load


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(
        tmp_path_factory.mktemp("cohort") / "c", cases=4, slices=8, size=96, seed=21, test_fraction=0
    )


def image_and_labels(cohort, number):
    image = read_volume(cohort / "imagesTr" / f"phantom_{number:03d}_0000.nii.gz")
    return image, read_labels(cohort / "labelsTr" / f"phantom_{number:03d}.nii.gz", like=image)


def test_homogenizer_gives_the_files_of_the_homogenize_command(cohort, tmp_path):
    homogenize(
        open_input(cohort), tmp_path / "out", homogenize_config(per="volume", size=128), reporter=Silent()
    )
    image, labels = image_and_labels(cohort, 2)
    result = Homogenizer(size=128).transform(to_sitk(image), to_sitk(labels))
    assert isinstance(result.image, sitk.Image)
    written = read_volume(tmp_path / "out" / "imagesTr" / "phantom_002_0000.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(result.image), written.array)
    np.testing.assert_allclose(result.image.GetSpacing(), written.spacing, rtol=1e-6)
    np.testing.assert_allclose(result.image.GetOrigin(), written.origin, atol=1e-3)
    marked = read_labels(tmp_path / "out" / "labelsTr" / "phantom_002.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(result.labels), marked.array)


def test_labels_and_probabilities_are_restored_to_their_position(cohort):
    image, labels = image_and_labels(cohort, 1)
    homogenizer = Homogenizer(size=256)
    upright = homogenizer.transform(image, labels)
    back = homogenizer.inverse_transform(upright.labels, upright)
    assert back.same_grid(labels)
    kidney = labels.array == 1
    overlap = 2 * ((back.array == 1) & kidney).sum() / ((back.array == 1).sum() + kidney.sum())
    assert overlap > 0.97
    share = upright.labels.with_array((upright.labels.array == 1).astype(np.float32))
    probability = homogenizer.inverse_transform(share, upright.transform, probability=True)
    assert probability.array.dtype == np.float32
    np.testing.assert_array_equal(probability.array > 0.5, back.array == 1)
    again = homogenizer.transform_labels(labels, upright)
    np.testing.assert_array_equal(again.array, upright.labels.array)


def test_fit_uses_the_size_of_the_given_patient(cohort):
    images = [image_and_labels(cohort, number)[0] for number in range(4)]
    plain = Homogenizer(size=128)
    assert plain.reference_ is None
    fitted = Homogenizer(size=128).fit(images)
    reference = fitted.reference_
    assert reference is not None
    assert reference.case in {"0", "1", "2", "3"}
    # The chosen patient comes out at the size that he has: the same area of body in square millimeters.
    chosen = images[int(reference.case)]
    upright = fitted.transform(chosen)
    before = (chosen.reoriented().array[reference.slice] > -300).sum() * np.prod(
        chosen.reoriented().spacing[:2]
    )
    after = (upright.image.array[reference.slice] > -300).sum() * np.prod(upright.image.spacing[:2])
    assert after == pytest.approx(before, rel=0.06)
    assert fitted.pixel_mm != pytest.approx(plain.pixel_mm, rel=0.01)
    # All others come to that size too.
    sizes = [(fitted.transform(image).image.array > -300).sum(axis=(1, 2)).max() for image in images]
    assert max(sizes) / min(sizes) < 1.2
    assert [one.image.array.shape[0] for one in fitted.fit_transform(images[:2])] == [8, 8]


def test_transform_survives_a_round_trip_through_text(cohort):
    image, labels = image_and_labels(cohort, 3)
    homogenizer = Homogenizer(size=96)
    upright = homogenizer.transform(image, labels)
    kept = Transform.from_text(upright.transform.to_text())
    assert kept == upright.transform
    expected = homogenizer.inverse_transform(upright.labels, upright)
    np.testing.assert_array_equal(homogenizer.inverse_transform(upright.labels, kept).array, expected.array)
    with pytest.raises(InputError, match="transform as text"):
        Transform.from_text("{}")


def test_invalid_arguments_are_refused(cohort, tmp_path):
    homogenizer = Homogenizer()
    image, labels = image_and_labels(cohort, 0)
    upright = homogenizer.transform(image)
    with pytest.raises(InputError, match="homogenized grid"):
        homogenizer.inverse_transform(labels, upright)
    with pytest.raises(InputError, match="not lie on the image's grid"):
        homogenizer.transform(image, upright.image.with_array(np.zeros_like(upright.image.array)))
    elsewhere, nothing = upright.image.with_array(np.ones(upright.image.array.shape, np.uint8)), np.zeros_like
    with pytest.raises(InputError, match="the mask does not lie on the image's grid"):
        homogenizer.transform(image, mask=elsewhere)
    with pytest.raises(InputError, match="mask is empty"):
        homogenizer.transform(image, mask=labels.with_array(nothing(labels.array)))
    with pytest.raises(InputError, match="whole numbers"):
        homogenizer.inverse_transform(upright.image, upright)
    with pytest.raises(InputError, match="at least one image"):
        homogenizer.fit([])
    with pytest.raises(InputError):
        Homogenizer(tmp_path / "nothing")
    with pytest.raises(InputError):
        Homogenizer(per="patient")
    assert homogenizer.get_params() == {
        "model": None,
        "per": "volume",
        "size": 384,
        "crop": False,
        "reference": None,
        "scale_z": True,
        "modality": "auto",
        "plane": None,
    }
    assert eval(repr(homogenizer)).get_params() == homogenizer.get_params()


def test_mr_keeps_its_values_and_is_restored(cohort):
    ct, labels = image_and_labels(cohort, 2)
    scan = load("mr_scans").seen_by_mr(ct)
    homogenizer = Homogenizer(size=256, modality="mr")
    upright = homogenizer.transform(scan, labels)
    body = upright.labels.array == 1
    assert np.median(upright.image.array[body]) == pytest.approx(
        np.median(scan.array[labels.array == 1]), rel=0.02
    )
    back = homogenizer.inverse_transform(upright.labels, upright)
    assert 2 * ((back.array == 1) & (labels.array == 1)).sum() > 0.97 * (
        (back.array == 1).sum() + (labels.array == 1).sum()
    )
    # As CT, nearly all of it would be called denser than bone.
    assert Homogenizer(modality="mr").fit([scan]).reference_ is not None


def test_a_rotated_patient_in_mr_is_turned_upright():
    scan, roll = load("mr_scans").whole_phantom(2_000_003, 0, "t1", size=128, slices=6)
    result = Homogenizer(size=128, modality="mr").transform(scan)
    np.testing.assert_allclose(result.roll_degrees, np.degrees(roll), atol=4.0)
    assert abs(np.degrees(roll)) > 4.0


def test_a_reference_in_mr_is_read_as_mr(tmp_path):
    scan, _ = load("mr_scans").whole_phantom(2_000_003, 0, "t1", size=128, slices=6)
    write_image(scan, tmp_path / "reference.nii.gz")
    _, side_mm, _ = outline_of_scan(read_volume(tmp_path / "reference.nii.gz"), "mr")
    homogenizer = Homogenizer(size=128, modality="mr", reference=tmp_path / "reference.nii.gz")
    assert homogenizer.pixel_mm == side_mm / 128


def test_given_mask_replaces_the_estimated_body_mask(cohort):
    """A mask twice as wide is brought to the same width, so the scale along x is halved."""
    image, _ = image_and_labels(cohort, 2)
    y, x = np.indices(image.array.shape[1:]) - 48.0
    scales = []
    for half in (12.0, 24.0):
        mask = np.broadcast_to((y / 20.0) ** 2 + (x / half) ** 2 < 1.0, image.array.shape)
        result = Homogenizer(size=128).transform(image, mask=image.with_array(mask.astype(np.uint8)))
        poses = np.array(result.transform.poses)
        scales.append(np.exp(poses[:, LOG_SCALE_X]) * result.transform.frame.fov_mm)
    np.testing.assert_allclose(scales[1] / scales[0], 2.0, rtol=0.05)


def test_a_reference_is_named_by_word_or_path(cohort):
    image, labels = image_and_labels(cohort, 0)
    child, adult = Homogenizer(size=128), Homogenizer(size=128, reference="adult")
    assert adult.pixel_mm / child.pixel_mm == pytest.approx(332.5 / 167.5, rel=1e-3)
    # The adult's proportions are not the child's, which the mean of both scales evens out.
    grown = adult.transform(image).image.spacing / child.transform(image).image.spacing
    np.testing.assert_allclose(grown, adult.pixel_mm / child.pixel_mm, rtol=0.07)
    own = Homogenizer(size=128, reference=cohort / "imagesTr" / "phantom_000_0000.nii.gz")
    upright = own.transform(image, labels)
    assert upright.transform.grid.z_scale == pytest.approx(1.0, abs=0.02)
    with pytest.raises(InputError, match="but one was given"):
        own.fit([image])
    with pytest.raises(
        InputError, match="expected child, adult, or the path of a scan or of a model's folder"
    ):
        Homogenizer(reference="chlid")
    flat = Homogenizer(size=128, scale_z=False).transform(image).image
    assert flat.spacing[2] == pytest.approx(image.spacing[2], rel=1e-12)


def test_homogenizer_is_exported_but_imported_lazily():
    assert set(isopose.__all__) == {"Homogenized", "Homogenizer", "Pipeline", "Result", "__version__", "wrap"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        isopose.nothing  # noqa: B018
