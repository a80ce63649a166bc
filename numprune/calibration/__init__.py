"""Calibration: text in, one Gram matrix per module out."""

from numprune.calibration.data import DATASETS
from numprune.calibration.run import calibrate, calibrate_by_recipe
from numprune.calibration.statistics import CalibrationStats, ModuleStats

__all__ = ["DATASETS", "CalibrationStats", "ModuleStats", "calibrate", "calibrate_by_recipe"]
