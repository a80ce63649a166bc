"""Calibration: text in, one Gram matrix per module out."""

from numprune.lazy import lazily

__all__, __getattr__ = lazily(
    __name__,
    {
        "numprune.calibration.names": "DATASETS",
        "numprune.calibration.run": "calibrate calibrate_by_recipe",
        "numprune.calibration.statistics": "CalibrationStats ModuleStats",
    },
)
