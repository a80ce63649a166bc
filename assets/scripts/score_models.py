"""Score the embedded models by the paper's method and by the default, so that the dashboard opens on a plan at once.

    python assets/scripts/score_models.py

Run it after training and after `draw_self_samples.py`; a file says which weights and samples it belongs to.
"""

import numprune
from numprune.models.outline import outline_of
from numprune.scoring.score_file import shipped_file


def main() -> None:
    for name in numprune.embedded_models():
        model = numprune.load(name, device="cpu", dtype="float32")
        source = numprune.CalibrationRecipe()
        stats = numprune.calibrate(
            model, source.data, samples=source.samples, sequence_length=model.maximum_length, seed=source.seed
        )
        for method in ("paper", numprune.DEFAULT_PRESET):
            scorer = numprune.preset(method).settings["scorer"]
            path = shipped_file(name, scorer)
            numprune.write_scores(path, numprune.score(model, stats, scorer=scorer), stats.source, outline_of(model))
            print(path)


if __name__ == "__main__":
    main()
