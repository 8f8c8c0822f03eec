"""Drawn trunks for trainings that are over in seconds."""

import numpy as np

from isopose.geometry.volume import Volume


def patient(number: int) -> tuple[Volume, Volume]:
    """A trunk of six slices with spine, two kidneys and a tumor, each patient of another size and roll."""
    random = np.random.default_rng(number)
    pixel, (slices, side) = 4.0, (6, 72)
    y, x = (np.indices((side, side)) - (side - 1) / 2) * pixel
    roll = np.radians([0.0, 14.0, -9.0, 6.0, -18.0, 3.0][number % 6])
    x, y = np.cos(roll) * x + np.sin(roll) * y, np.cos(roll) * y - np.sin(roll) * x
    width = 80.0 + 8.0 * number
    body = (x / width) ** 2 + (y / (0.68 * width)) ** 2 < 1
    spine = (x / 14) ** 2 + ((y - 0.36 * width) / 14) ** 2 < 1
    kidneys = ((np.abs(x) - 0.45 * width) / (0.2 * width)) ** 2 + ((y - 0.25 * width) / 22) ** 2 < 1
    tumor = ((x + 0.4 * width) / 20) ** 2 + ((y - 0.05 * width) / 20) ** 2 < 1
    marks = np.zeros((slices, side, side), np.uint8)
    marks[1:5][:, kidneys & body] = 1
    marks[2:4][:, tumor & body] = 2
    plane = np.where(body, 40.0, -1000.0)
    plane[spine & body] = 400.0
    array = plane[None] + 110.0 * (marks == 1) + 60.0 * (marks == 2)
    array += np.where(body, random.normal(0.0, 12.0, array.shape), 0.0)
    matrix = np.diag([pixel, pixel, 5.0, 1.0])
    matrix[:3, 3] = (-140.0, -150.0, 30.0 * number)
    return Volume(array.round().astype(np.int16), matrix), Volume(marks, matrix)
