"""MR series are read without a unit, with their positions, and refused where CT is expected."""

import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes
from pydicom.uid import MRImageStorage, generate_uid

from io_helpers import dicom_slice, raw_slices, rotation, save, write_series
from isopose.errors import InputError
from isopose.io.images import read_volume
from isopose.io.results.formats import result_files, write_results
from isopose.io.results.source import open_source
from isopose.labels import Labels

MR = {"SOPClassUID": MRImageStorage, "Modality": "MR", "RescaleSlope": None, "RescaleIntercept": None}


def test_an_mr_series_keeps_stored_values_and_positions(tmp_path):
    raw = raw_slices()
    scan = read_volume(write_series(tmp_path, raw, **MR), modality="mr")
    np.testing.assert_array_equal(scan.array, raw)
    np.testing.assert_allclose(scan.world_from_index @ [2, 1, 3, 1], [-10 + 2 * 0.75, 20 + 0.5, -294, 1])


def test_a_missing_modality_is_taken_from_the_storage_class(tmp_path):
    folder = write_series(tmp_path, raw_slices(), **(MR | {"Modality": None}))
    assert read_volume(folder, modality="mr").array.min() >= 0
    with pytest.raises(InputError, match="a DICOM series of MR, expected CT"):
        read_volume(folder, modality="ct")


def test_ct_is_refused_where_mr_is_expected(tmp_path):
    folder = write_series(tmp_path, raw_slices())
    with pytest.raises(InputError, match=r"expected MR; use a model of CT, or .* --modality ct") as error:
        read_volume(folder, modality="mr")
    assert "\n" not in str(error.value)
    assert read_volume(folder, modality="ct").array.min() < 0


def test_results_refer_to_the_mr_series(tmp_path):
    axes, raw = rotation((4, -7, 11)), raw_slices()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    uids = []
    for i, pixels in enumerate(raw):
        path = np.array([-10.0, 20.0, -300.0]) + axes[:, 2] * 2.0 * i
        orientation = (*axes[:, 0], *axes[:, 1])
        data = dicom_slice(pixels, path, orientation, series, **MR,
                           StudyInstanceUID=study, FrameOfReferenceUID=frame)  # fmt: skip
        uids.append(data.SOPInstanceUID)
        save(data, tmp_path / "mr" / f"{i}.dcm")
    scan = read_volume(tmp_path / "mr", modality="mr")
    marks = np.zeros(scan.array.shape, np.uint8)
    marks[1:3, 1:4, 2:6] = 1
    files = result_files(tmp_path, "scan", ("dicom-seg", "rtstruct", "dicom-sr"))
    write_results(
        files,
        scan.with_array(marks),
        Labels({"kidney": 1}),
        {"kidney": 1.5},
        path=tmp_path / "mr",
        series=None,
        made_from=["a"],
        source=open_source(tmp_path / "mr", None, scan),
    )
    segments, structures, report = (pydicom.dcmread(file) for file in files.values())
    for referenced in segments.ReferencedSeriesSequence[0].ReferencedInstanceSequence:
        assert referenced.ReferencedSOPClassUID == MRImageStorage
        assert referenced.ReferencedSOPInstanceUID in uids
    assert segments.ReferencedSeriesSequence[0].SeriesInstanceUID == series
    referenced_uids = {
        image.ReferencedSOPInstanceUID
        for item in segments.PerFrameFunctionalGroupsSequence
        for derived in item.DerivationImageSequence
        for image in derived.SourceImageSequence
    }
    assert referenced_uids == set(uids[1:3])
    contour = structures.ROIContourSequence[0].ContourSequence[0]
    assert contour.ContourImageSequence[0].ReferencedSOPClassUID == MRImageStorage
    points = np.array(contour.ContourData, float).reshape(-1, 3)
    index = np.linalg.solve(scan.world_from_index, np.c_[points, np.ones(len(points))].T)
    assert np.allclose(index[:2].min(axis=1), [1.5, 0.5], atol=1e-3)
    assert np.allclose(index[:2].max(axis=1), [5.5, 3.5], atol=1e-3)
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    classes = {
        i.ReferencedSOPClassUID
        for one in evidence
        if one.SeriesInstanceUID == series
        for i in one.ReferencedSOPSequence
    }
    assert classes == {MRImageStorage}
    coded = [
        item.ConceptCodeSequence[0].CodeValue
        for item in report.ContentSequence
        if "ConceptCodeSequence" in item
    ]
    assert codes.LN.MRIUnspecifiedBodyRegion.value in coded
    assert codes.LN.CTUnspecifiedBodyRegion.value not in coded
