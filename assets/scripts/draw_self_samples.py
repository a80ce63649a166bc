"""Draw the calibration samples that ship with the embedded models, so that their first scores need no sampling.

    python assets/scripts/draw_self_samples.py

Run it after training; a file's name holds the fingerprint of the weights it was drawn from.
"""

import os
import tempfile
from pathlib import Path

import numprune
from numprune.calibration.self_samples import self_samples
from numprune.models.embedded import assets


def main() -> None:
    recipe = numprune.CalibrationRecipe()
    for name in numprune.embedded_models():
        folder = assets() / "models" / name
        for stale in folder.glob("self-*.safetensors"):
            stale.unlink()
        model = numprune.load(name, device="cpu", dtype="float32")
        with tempfile.TemporaryDirectory() as cache:
            os.environ["NUMPRUNE_CACHE"] = cache
            self_samples(model, recipe.samples, model.maximum_length, recipe.seed)
            for file in Path(cache).glob("self-*.safetensors"):
                (folder / file.name).write_bytes(file.read_bytes())
                print(folder / file.name)


if __name__ == "__main__":
    main()
