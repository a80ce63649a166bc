"""What the page has models do, imported when it is first asked for: torch and transformers take seconds, in which the
page is there already."""

from numprune.lazy import lazily

__all__, __getattr__ = lazily(
    __name__,
    {
        "numprune.allocation.depth": "choose_depth depth_of",
        "numprune.evaluation.time_budget": "with_speedup",
        "numprune.allocation.search": "sensitivity suggest uses_curves",
        "numprune.calibration.data": "documents",
        "numprune.calibration.run": "calibrate_by_recipe",
        "numprune.evaluation.attention": "attention_patterns",
        "numprune.evaluation.divergence": "divergence",
        "numprune.evaluation.footprint": "sizes",
        "numprune.evaluation.images.features": "METRICS",
        "numprune.evaluation.images.judge": "panel_of",
        "numprune.evaluation.images.quality": "image_quality",
        "numprune.evaluation.measurement": "Bench run_of",
        "numprune.evaluation.methods": "compare_methods",
        "numprune.evaluation.perplexity": "perplexity",
        "numprune.evaluation.reproduction": "curves_for",
        "numprune.evaluation.speed": "now",
        "numprune.evaluation.speed_comparison": "compare_speed",
        "numprune.evaluation.sweep": "sweep",
        "numprune.evaluation.uniform": "cost_of_uniform",
        "numprune.export.hub": "check_repo_id push_to_hub",
        "numprune.generation.images": "picture",
        "numprune.generation.text": "Sampling generate stream_text",
        "numprune.loading.opening": "load",
        "numprune.models.outline": "outline_of",
        "numprune.pruning": "prune",
        "numprune.scoring.run": "score",
        "numprune.scoring.score_file": "shipped_scores",
    },
)
