"""Hand-made grids, headers and DICOM series for tests of reading and writing."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from isopose.geometry.volume import Volume

SHARED = Path(__file__).parents[2] / "shared" / "data"
ORIENTATIONS = list(product(permutations(range(3)), product((False, True), repeat=3)))
SECRETS = ("Muster", "Erika", "ID-4711", "20090817")


def upright(shape=(4, 5, 6), dtype=np.int16, seed=0):
    """Make a volume on axes L, P, S in which every value occurs once."""
    values = np.random.default_rng(seed).permutation(np.prod(shape)).reshape(shape).astype(dtype)
    matrix = np.diag([0.75, 0.5, 2.5, 1.0])
    matrix[:3, 3] = (-101.25, 33.5, -640.0)
    return Volume(values, matrix)


def positions(volume):
    """Return the world position of each voxel, in order of value."""
    k, j, i = np.indices(volume.array.shape)
    index = np.stack([i, j, k, np.ones_like(i)], axis=-1).reshape(-1, 4)
    order = np.argsort(volume.array.ravel(), kind="stable")
    return (index @ volume.world_from_index.T)[order, :3]


def stored(volume, axes, flips):
    """Permute and flip the array axes; the matrix is computed from the positions of three neighbors."""
    k, j, i = np.indices(volume.array.shape)
    world = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ volume.world_from_index.T
    flipped = tuple(axis for axis in range(3) if flips[axis])
    array = np.flip(volume.array.transpose(axes), flipped)
    world = np.flip(world.transpose(*axes, 3), flipped)
    matrix = np.eye(4)
    matrix[:, 3] = world[0, 0, 0]
    for axis, neighbor in enumerate([(0, 0, 1), (0, 1, 0), (1, 0, 0)]):
        matrix[:, axis] = world[neighbor] - world[0, 0, 0]
    return Volume(np.ascontiguousarray(array), matrix)


def rotation(angles):
    """Rotation matrix from three angles in degrees."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", angles, degrees=True).as_matrix()


def dicom_slice(pixels, position, orientation=(1, 0, 0, 0, 1, 0), series="1.2.3", **fields):
    """Make a CT slice with a patient's name; ``fields`` override elements, None removes them."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = generate_uid()
    data.PatientName = "Muster^Erika"
    data.PatientID = "ID-4711"
    data.PatientBirthDate = "20090817"
    data.SeriesDescription = "Abdomen Erika Muster"
    data.StudyDescription = "Muster"
    data.SeriesInstanceUID = series
    data.StudyInstanceUID = "1.2.3.0"
    data.SeriesNumber = 4
    data.Modality = "CT"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Rows, data.Columns = pixels.shape[-2:]
    data.ImagePositionPatient = [float(v) for v in position]
    data.ImageOrientationPatient = [float(v) for v in orientation]
    data.PixelSpacing = [0.5, 0.75]
    data.SliceThickness = 3
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = pixels.astype("<u2").tobytes()
    for name, value in fields.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    return data


def save(data, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def raw_slices(count=5, seed=0):
    """Stored pixels ``(z, y, x)``: HU plus 1024."""
    return np.random.default_rng(seed).integers(0, 4096, (count, 6, 7)).astype(np.uint16)


def write_series(folder, raw, step=(0.0, 0.0, 2.0), start=(-10.0, 20.0, -300.0), skip=(), **fields):
    """Write one file per slice; the order of names is not that of positions."""
    for i, pixels in enumerate(raw):
        if i not in skip:
            name = f"{(i * 7 + 3) % 101:03d}.dcm"
            data = dicom_slice(pixels, np.add(start, np.multiply(i, step)), **fields)
            save(data, Path(folder) / name)
    return Path(folder)


def enhanced(raw, order, step=2.0):
    """Make a multi-frame CT whose frames are stored in the given order."""
    data = dicom_slice(raw[0], (0, 0, 0), SOPClassUID=EnhancedCTImageStorage)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(data, name)
    del data.RescaleSlope, data.RescaleIntercept
    data.NumberOfFrames = len(order)
    data.PixelData = raw[list(order)].astype("<u2").tobytes()
    shared, orientation, measures, transformation = (Dataset() for _ in range(4))
    orientation.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], 2.0
    transformation.RescaleSlope, transformation.RescaleIntercept = 1, -1024
    transformation.RescaleType = "HU"
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [measures]
    shared.PixelValueTransformationSequence = [transformation]
    data.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for i in order:
        plane_position, group = Dataset(), Dataset()
        plane_position.ImagePositionPatient = [-10.0, 20.0, -300.0 + step * i]
        group.PlanePositionSequence = [plane_position]
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = groups
    return data
