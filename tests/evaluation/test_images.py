import math
import sys
import zipfile
from types import ModuleType
from urllib.error import URLError

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from numprune import Cancelled, InputError, LoadError, NumericalError
from numprune.evaluation.images.comparison import ImageMetrics, image_metrics
from numprune.evaluation.images.features import METRICS, Features
from numprune.evaluation.images.inception import INCEPTION, Inception
from numprune.evaluation.images.metrics import frechet_distance, inception_score, precision_recall
from numprune.evaluation.images.moments import Moments, MomentsAccumulator
from numprune.evaluation.images.references import Reference, reference_from_images, reference_from_npz


def random_features(n, d=6, *, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + shift


def random_images(n, seed=0, size=8):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_probabilities(n, classes=10, seed=0):
    return (3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))).softmax(1)


def shuffled(x):
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(6))]


class TinyExtractor:
    """Projects the pixels; what it gives is settable."""

    def __init__(self, name="tiny", *, spatial=True, probabilities=True, d=5):
        self.name = name
        self.spatial, self.probabilities = spatial, probabilities
        self.seen = 0
        self.weight = torch.randn(3 * 8 * 8, d, generator=torch.Generator().manual_seed(9)) / 5

    def __call__(self, images):
        self.seen += len(images)
        pool = images.flatten(1) @ self.weight
        return Features(
            pool,
            images[:, 0, ::4, ::4].flatten(1) if self.spatial else None,
            (5 * pool).softmax(1) if self.probabilities else None,
        )


class Stop:
    def __init__(self, after=0):
        self.left = after

    def is_set(self):
        self.left -= 1
        return self.left < 0


def scipy_distance(a, b):
    """Fréchet distance by the matrix square root of the unsymmetric product."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    roots = sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False))
    return distance - 2 * np.trace(roots).real


def brute_precision_recall(real, generated, k):
    def covered(points, others):
        inside = 0
        radii = [np.sort(np.linalg.norm(others - other, axis=1))[k] for other in others]
        for point in points:
            inside += any(np.linalg.norm(point - other) <= r for other, r in zip(others, radii, strict=True))
        return inside / len(points)

    return covered(generated, real), covered(real, generated)


def test_moments_are_what_numpy_says():
    x = random_features(40)
    moments = Moments.of(x)
    np.testing.assert_allclose(moments.mean, x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-12)
    assert (moments.n, moments.mean.dtype, moments.covariance.dtype) == (40, torch.float64, torch.float64)
    of_array = Moments.of(x.numpy())
    assert torch.equal(of_array.covariance, moments.covariance)


def test_batches_in_any_order_and_merged_parts_give_the_whole(monkeypatch):
    monkeypatch.setattr("numprune.evaluation.images.moments.BLOCK", 16)
    x = random_features(101, shift=1e6)
    expected = np.cov(x.numpy(), rowvar=False)
    halves = MomentsAccumulator(), MomentsAccumulator()
    for index, part in enumerate(shuffled(x).split(7)):
        halves[index % 2].add(part)
    before = halves[1].finish()
    merged = MomentsAccumulator()
    for half in (MomentsAccumulator(), halves[1], halves[0]):
        merged.merge(half)
    one_by_one = MomentsAccumulator()
    for row in x:
        one_by_one.add(row[None])
    for moments in (Moments.of(x), merged.finish(), one_by_one.finish()):
        assert moments.n == 101
        np.testing.assert_allclose(moments.mean, x.numpy().mean(0), rtol=1e-14)
        np.testing.assert_allclose(moments.covariance, expected, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(halves[1].finish().covariance, before.covariance, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_is_read_exactly(dtype):
    x = random_features(30).to(dtype)
    assert torch.equal(Moments.of(x).covariance, Moments.of(x.double()).covariance)
    real, generated = x[:15], x[15:]
    assert precision_recall(real, generated, 1) == precision_recall(real.double(), generated.double(), 1)
    p = random_probabilities(30).to(dtype)
    assert inception_score(p) == inception_score(p.double())


@pytest.mark.parametrize(("n", "m", "d"), [(200, 300, 8), (50, 40, 30), (2, 200, 3), (200, 200, 1)])
def test_frechet_distance_is_scipys(n, m, d):
    a, b = random_features(n, d, seed=1), random_features(m, d, seed=2, shift=0.3)
    if d == 1:
        spreads = a.std() - b.std()
        expected = float((a.mean() - b.mean()) ** 2 + spreads**2)
    else:
        expected = scipy_distance(a, b)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=1e-6)


def test_fewer_images_than_features_are_no_less_accurate():
    # Both live in the same 12 of 40 dimensions, where their covariances are regular and scipy is accurate.
    low = [random_features(n, 12, seed=n, shift=0.2 * n / 30) for n in (30, 35)]
    basis = torch.linalg.qr(random_features(40, 12, seed=3)).Q
    embedded = [Moments.of(x @ basis.T) for x in low]
    assert frechet_distance(*embedded) == pytest.approx(scipy_distance(*low), rel=1e-10)
    few = [Moments.of(random_features(5, 40, seed=seed)) for seed in (1, 2)]
    assert frechet_distance(*few) == pytest.approx(frechet_distance(*few[::-1]), rel=1e-10)
    assert frechet_distance(few[0], few[0]) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_of_known_gaussians():
    # Commuting covariances: the distance is that of the means plus that of the standard deviations.
    a = Moments.given(np.array([1.0, 2.0]), np.diag([4.0, 9.0]))
    b = Moments.given(np.array([1.0, 5.0]), np.diag([1.0, 0.0]))
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 9, rel=1e-12)
    c = Moments.given(np.array([1.0, 5.0]), np.zeros((2, 2)))
    assert frechet_distance(a, c) == pytest.approx(9 + 13, rel=1e-12)
    assert frechet_distance(c, c) == 0
    assert a.n is None


def test_moments_in_single_precision_are_accepted():
    a, b = random_features(10, 30, seed=1), random_features(12, 30, seed=2)
    rounded = [Moments.given(*(x.float() for x in (m.mean, m.covariance))) for m in map(Moments.of, (a, b))]
    assert frechet_distance(*rounded) == pytest.approx(frechet_distance(Moments.of(a), Moments.of(b)), rel=1e-3)


def test_the_distance_agrees_with_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid", reason="needs torchmetrics")
    real, generated = random_images(60, 1), random_images(50, 2) ** 1.5
    extractor = TinyExtractor()

    class Pooled(nn.Module):
        num_features = 5

        def forward(self, images):
            return extractor(images).pool.double()

    metric = fid.FrechetInceptionDistance(Pooled(), normalize=True, input_img_size=(3, 8, 8)).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    ours = image_metrics(generated, extractor, reference_from_images(real, extractor))
    assert ours.values["fid"] == pytest.approx(float(metric.compute()), rel=1e-5)


@pytest.mark.parametrize("splits", [1, 4])
def test_the_score_agrees_with_torchmetrics(splits):
    module = pytest.importorskip("torchmetrics.image.inception", reason="needs torchmetrics")
    logits = random_probabilities(80).double().log()

    class Logits(nn.Module):
        def forward(self, images):
            return logits

    metric = module.InceptionScore(Logits(), normalize=True, splits=splits)
    metric.update(random_images(80))
    torch.manual_seed(5)
    mean, std = metric.compute()
    # It shuffles, and divides the variance by one less than the splits.
    torch.manual_seed(5)
    ours = inception_score(logits.softmax(1)[torch.randperm(80)], split_size=80 // splits)
    assert ours[0] == pytest.approx(float(mean), rel=1e-9)
    if splits > 1:
        assert ours[1] * math.sqrt(splits / (splits - 1)) == pytest.approx(float(std), rel=1e-9)


def test_inception_score_is_the_formula_split_by_split():
    p = random_probabilities(25).double().numpy()
    scores = []
    for part in (p[:10], p[10:20], p[20:]):
        kl = (part * (np.log(part) - np.log(part.mean(0)))).sum(1)
        scores.append(np.exp(kl.mean()))
    mean, std = inception_score(p, split_size=10)
    assert (mean, std) == (pytest.approx(np.mean(scores), rel=1e-12), pytest.approx(np.std(scores), rel=1e-9))
    assert inception_score(p, split_size=25)[0] == pytest.approx(inception_score(p[::-1].copy())[0], rel=1e-12)


def test_inception_score_of_certain_and_of_equal_predictions():
    mean, std = inception_score(torch.eye(10).repeat(3, 1))
    assert mean == pytest.approx(10)
    assert math.isnan(std)
    assert inception_score(torch.full((8, 4), 0.25))[0] == pytest.approx(1)
    assert inception_score(random_probabilities(1))[0] == pytest.approx(1)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("block", [5, 1000])
def test_precision_and_recall_are_those_of_brute_force(k, block, monkeypatch):
    monkeypatch.setattr("numprune.evaluation.images.metrics.BLOCK", block)
    real, generated = random_features(31, 4, seed=1), random_features(23, 4, seed=2) * 0.7 + 0.4
    expected = brute_precision_recall(real.numpy(), generated.numpy(), k)
    assert precision_recall(real, generated, k) == pytest.approx(expected)
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1
    # Far from the origin squared norms are large beside the distances.
    assert precision_recall(real + 1e4, generated + 1e4, k) == pytest.approx(expected)
    assert precision_recall(shuffled(real), shuffled(generated), k) == pytest.approx(expected)


def test_the_surface_of_a_ball_belongs_to_it():
    # On a grid most distances are ties; in thirds none of them is exact.
    grid = torch.cartesian_prod(*[torch.arange(4.0, dtype=torch.float64)] * 3) / 3
    generated = grid[::2] + torch.tensor([1.0, 0, 0], dtype=torch.float64)
    expected = brute_precision_recall(np.rint(grid.numpy() * 3), np.rint(generated.numpy() * 3), 1)
    assert precision_recall(grid, generated, 1) == pytest.approx(expected)
    assert 0 < expected[0] < 1


def test_copies_of_one_image():
    real = random_features(20, 300, seed=4)
    copies = real[:1].repeat(10, 1)
    assert precision_recall(real, copies) == (1, 1 / 20)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, copies + 1e3) == (0, 0)


def test_precision_and_recall_tell_progress_and_stop(monkeypatch):
    monkeypatch.setattr("numprune.evaluation.images.metrics.BLOCK", 4)
    x, calls = random_features(10), []
    precision_recall(x, x[:6], progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(done, 10) for done in range(1, 11)]
    for after in (0, 9):
        with pytest.raises(Cancelled):
            precision_recall(x, x, cancel=Stop(after))


def test_all_metrics_from_batches_are_those_of_the_whole():
    extractor = TinyExtractor()
    real, generated = random_images(30, 1), random_images(20, 2) * 0.9
    reference = reference_from_images(iter(real.split(7)), extractor)
    calls = []
    result = image_metrics(
        iter(generated.split(6)), extractor, reference, total=20, progress=lambda *call: calls.append(call)
    )
    ours, theirs = extractor(real), extractor(generated)
    assert (result.extractor, result.n) == ("tiny", 20)
    assert list(result.values) == list(METRICS)
    expected = {
        "fid": scipy_distance(ours.pool, theirs.pool),
        "sfid": scipy_distance(ours.spatial, theirs.spatial),
        "is": inception_score(theirs.probabilities)[0],
    }
    expected["precision"], expected["recall"] = brute_precision_recall(ours.pool.numpy(), theirs.pool.numpy(), 3)
    assert result.values == pytest.approx(expected, rel=1e-5)
    assert [call for call in calls if call[2] == "extracting features"] == [
        (done, 20, "extracting features") for done in (6, 12, 18, 20)
    ]
    whole = image_metrics(generated.numpy(), extractor, reference)
    assert whole.values == pytest.approx(result.values, rel=1e-5)
    assert math.isnan(result.is_std)
    assert result.to_dict() == {"extractor": "tiny", "n": 20, "values": result.values, "is_std": None}
    assert ImageMetrics("tiny", 1, {"is": 2.0}, 0.5).to_dict()["is_std"] == 0.5


def test_metrics_are_measured_as_asked():
    extractor = TinyExtractor(spatial=False)
    reference = reference_from_images(random_images(9), extractor)
    assert reference.spatial is None
    result = image_metrics(random_images(8, 1), extractor, reference, ("recall", "fid"))
    assert list(result.values) == ["recall", "fid"]
    assert result.is_std is None
    alone = image_metrics(random_images(1, 1), extractor, metrics=("is",))
    assert alone.values == {"is": pytest.approx(1)}
    assert reference_from_images(random_images(9), extractor, ("fid",)).features is None
    assert reference_from_images(random_images(9), extractor, ("recall",)).pool is None


def test_features_in_half_precision_are_measured():
    class Half(TinyExtractor):
        def __call__(self, images):
            full = super().__call__(images)
            return Features(full.pool.half(), full.spatial.half(), full.probabilities.half())

    values = []
    for extractor in (TinyExtractor(), Half()):
        reference = reference_from_images(random_images(40, 1), extractor)
        values.append(image_metrics(random_images(30, 2), extractor, reference, ("fid", "sfid", "is")).values)
    assert values[0] == pytest.approx(values[1], rel=2e-2)


@pytest.mark.parametrize(
    ("metrics", "extractor", "says"),
    [
        (("fid", "kid"), TinyExtractor(), r"'kid' was asked for; choose from \('fid', 'sfid', 'is'"),
        ((), TinyExtractor(), "No metric was asked for; choose from"),
        (("fid",), TinyExtractor("other"), "reference belongs to tiny, not to other; use one extractor for both"),
        (("sfid",), TinyExtractor(spatial=False), "tiny gives no spatial features, so sfid cannot be measured; leave"),
        (("is",), TinyExtractor(probabilities=False), "tiny gives no class probabilities, so is cannot be measured"),
    ],
)
def test_metrics_that_cannot_be_had_are_refused_by_name(metrics, extractor, says):
    reference = reference_from_images(random_images(9), TinyExtractor())
    with pytest.raises(InputError, match=says):
        image_metrics(random_images(8), extractor, reference, metrics)


@pytest.mark.parametrize("metric", ["fid", "sfid", "precision", "recall"])
def test_a_reference_must_have_what_a_metric_needs(metric):
    extractor = TinyExtractor()
    with pytest.raises(InputError, match=f"{metric} compares with real images; give a reference or leave it out"):
        image_metrics(random_images(8), extractor, metrics=(metric,))
    with pytest.raises(InputError, match=f"reference has nothing to measure {metric} with"):
        image_metrics(random_images(8), extractor, Reference("tiny"), (metric,))
    assert extractor.seen == 0


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([], "There are no images to measure; give at least one"),
        (random_images(2)[0], r"Images of shape \(3, 8, 8\) and type torch.float32 cannot be measured; give \(n, 3"),
        (random_images(2)[:, :1], r"\(2, 1, 8, 8\)"),
        ([random_images(2)[:0]], r"\(0, 3, 8, 8\)"),
        (2 * random_images(2) - 1, r"floats in \[0, 1\]"),
        ((255 * random_images(2)).to(torch.uint8), "type torch.uint8"),
        (random_images(2) * torch.nan, r"floats in \[0, 1\]"),
    ],
)
def test_images_of_another_form_are_refused(images, says):
    with pytest.raises(InputError, match=says):
        image_metrics(images, TinyExtractor(), metrics=("is",))


def test_too_few_images_are_refused():
    extractor = TinyExtractor()
    reference = reference_from_images(random_images(9), extractor)
    with pytest.raises(InputError, match="covariance needs at least 2 images; 1 cannot give one"):
        image_metrics(random_images(1), extractor, reference, ("fid",))
    with pytest.raises(InputError, match="9 real and 3 generated images have no 3 neighbours each; use more images"):
        image_metrics(random_images(3), extractor, reference, ("precision",))
    with pytest.raises(InputError, match="at least 2 images; 0 cannot"):
        MomentsAccumulator().finish()


def test_features_that_are_not_finite_are_refused():
    class Broken(TinyExtractor):
        def __call__(self, images):
            return Features(super().__call__(images).pool.log())

    with pytest.raises(NumericalError, match="pooled features of tiny are not finite; check the images and run"):
        reference_from_images(random_images(9), Broken())
    x = random_features(9)
    bad = x.clone()
    bad[3, 2] = torch.nan
    accumulator = MomentsAccumulator()
    accumulator.add(x)
    for call in (
        lambda: accumulator.add(bad),
        lambda: precision_recall(bad, x),
        lambda: precision_recall(x, bad),
        lambda: inception_score(bad),
        lambda: Moments.given(bad[3], x.T @ x),
        lambda: Moments.given(x[0], x.T @ x * torch.inf),
    ):
        with pytest.raises(NumericalError, match="not finite"):
            call()
    assert accumulator.n == 9


def test_an_extractor_that_loses_images_is_refused():
    class Short(TinyExtractor):
        def __call__(self, images):
            return super().__call__(images[1:])

    with pytest.raises(InputError, match="tiny gives 3 rows of pooled features for 4 images; return one each"):
        image_metrics(random_images(4), Short(), metrics=("is",))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda x: Moments.of(x[0]), InputError, r"features have the shape \(6,\); give one row for each image"),
        (lambda x: Moments.given(x[0], x), InputError, r"shapes \(6,\) and \(9, 6\); give \(d,\) and \(d, d\)"),
        (lambda x: Moments.given(x[0], x[:6]), InputError, "A covariance is not symmetric; give the covariance"),
        (lambda x: precision_recall(x, x[:, :5]), InputError, "Real features have 6 columns and generated ones 5"),
        (lambda x: precision_recall(x, x, 0), InputError, "k is 0; give at least 1 neighbour"),
        (lambda x: inception_score(x), InputError, "do not sum to 1; give the softmax of the logits"),
        (lambda x: inception_score(x.softmax(1), split_size=0), InputError, "split_size is 0; give at least 1 image"),
    ],
)
def test_inputs_that_cannot_be_used_are_refused(call, error, says):
    with pytest.raises(error, match=says):
        call(random_features(9))


def test_moments_that_do_not_fit_are_refused():
    accumulator = MomentsAccumulator()
    accumulator.add(random_features(9))
    with pytest.raises(InputError, match="Features have 5 columns after 6; use one extractor"):
        accumulator.add(random_features(9, 5))
    six, five = Moments.of(random_features(9)), Moments.of(random_features(9, 5))
    with pytest.raises(InputError, match="Moments of 6 and of 5 features differ; use one extractor for both"):
        frechet_distance(six, five)
    negative = Moments.given(np.zeros(2), np.diag([1.0, -0.5]))
    with pytest.raises(NumericalError, match=r"A covariance has the eigenvalue -0\.5 beside 1; give the covariance"):
        frechet_distance(negative, negative)


def test_cancelling_stops_before_a_batch():
    extractor = TinyExtractor()
    with pytest.raises(Cancelled):
        image_metrics(random_images(9).split(3), extractor, metrics=("is",), cancel=Stop(2))
    assert extractor.seen == 6


@pytest.fixture
def npz(tmp_path):
    """A function that writes an npz file of the given arrays."""

    def write(**arrays):
        np.savez(tmp_path / "reference.npz", **arrays)
        return tmp_path / "reference.npz"

    return write


def stored_images(n):
    return (255 * random_images(n)).to(torch.uint8).permute(0, 2, 3, 1).numpy().copy()


def stored_moments(d=5, s=4):
    pool, spatial = Moments.of(random_features(30, d)), Moments.of(random_features(30, s))
    arrays = {"mu": pool.mean, "sigma": pool.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
    return {name: value.numpy() for name, value in arrays.items()}


@pytest.mark.parametrize("batch", [4, 64])
def test_another_extractor_computes_its_own_moments_from_the_images(npz, batch, monkeypatch):
    monkeypatch.setattr("numprune.evaluation.images.references.BATCH", batch)
    stored = stored_images(10)
    extractor, calls = TinyExtractor(), []
    reference = reference_from_npz(
        npz(arr_0=stored, **stored_moments()), extractor, progress=lambda *call: calls.append(call)
    )
    expected = reference_from_images(torch.from_numpy(stored).permute(0, 3, 1, 2) / 255, TinyExtractor())
    assert reference.extractor == "tiny"
    torch.testing.assert_close(reference.features, expected.features)
    torch.testing.assert_close(reference.pool.covariance, expected.pool.covariance, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(reference.spatial.covariance, expected.spatial.covariance, rtol=1e-5, atol=1e-7)
    assert calls[-1] == (10, 10, "extracting features")


def test_inception_takes_the_moments_of_the_file_and_reads_images_only_when_needed(npz):
    extractor, moments = TinyExtractor(INCEPTION), stored_moments()
    path = npz(arr_0=stored_images(10), **moments)
    reference = reference_from_npz(path, extractor, ("fid", "sfid", "is"))
    assert (extractor.seen, reference.features) == (0, None)
    np.testing.assert_array_equal(reference.pool.covariance, moments["sigma"])
    np.testing.assert_array_equal(reference.spatial.mean, moments["mu_s"])
    whole = reference_from_npz(path, extractor)
    np.testing.assert_array_equal(whole.pool.mean, moments["mu"])
    assert extractor.seen == len(whole.features) == 10
    from_images = reference_from_npz(npz(arr_0=stored_images(10)), extractor)
    assert from_images.pool.n == 10
    result = image_metrics(random_images(9), extractor, whole)
    assert result.extractor == INCEPTION


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sigma": None}, "reference.npz has no array sigma; give an npz file in ADM's format"),
        ({"mu_s": None}, "reference.npz has no array mu_s"),
        ({"arr_0": None}, "reference.npz has no array arr_0"),
        ({"mu": np.array([1, 2])}, "mu in .* holds int64; give floating-point numbers"),
        ({"mu": np.array([{}], dtype=object)}, "cannot be read as an npz file .*allow_pickle"),
        ({"arr_0": np.zeros((4, 8, 8, 3))}, r"arr_0 in .* holds float64 \(4, 8, 8, 3\); give images as uint8 \(n,"),
        ({"arr_0": np.zeros((4, 3, 8, 8), np.uint8)}, r"arr_0 in .* holds uint8 \(4, 3, 8, 8\)"),
        ({"arr_0": np.array([{}], dtype=object)}, r"arr_0 in .* holds object"),
    ],
)
def test_files_that_lack_something_are_refused(npz, change, says):
    arrays = {"arr_0": stored_images(4), **stored_moments(), **change}
    path = npz(**{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(InputError, match=says):
        reference_from_npz(path, TinyExtractor(INCEPTION))


def test_damaged_files_are_refused(npz, tmp_path):
    path, extractor = npz(arr_0=stored_images(4)), TinyExtractor()
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    (tmp_path / "flipped.npz").write_bytes(content)
    (tmp_path / "cut.npz").write_bytes(content[:400])
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("missing.npz", "flipped.npz", "cut.npz", "array.npy"):
        with pytest.raises(InputError, match=f"{name} cannot be read as an npz file"):
            reference_from_npz(tmp_path / name, extractor)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "short.npz", "w") as short:
        short.writestr("arr_0.npy", archive.read("arr_0.npy")[:-1])
    with pytest.raises(InputError, match=r"arr_0 in .*short\.npz ends after 0 of 4 images; fetch the file again"):
        reference_from_npz(tmp_path / "short.npz", extractor)


class FakeInception(nn.Module):
    """What `Inception` reads of torch-fidelity's module, with recognisable values."""

    def __init__(self, name, features_list, **options):
        super().__init__()
        self.features_list = features_list
        self.bias = nn.Parameter(torch.zeros(1))
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = nn.Identity()

    def forward(self, images):
        assert self.features_list == ["2048", "logits_unbiased"]
        assert images.dtype == torch.uint8
        self.pixels = images
        n = len(images)
        self.maps = self.Mixed_6d.branch1x1(torch.arange(n * 192 * 17 * 17.0).reshape(n, 192, 17, 17))
        return torch.ones(n, 2048), torch.linspace(-1, 1, 1008).repeat(n, 1)


@pytest.fixture
def fidelity(monkeypatch):
    """A stand-in for torch-fidelity."""
    package, module = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = FakeInception
    module.URL_INCEPTION_V3 = "https://example.org/weights-inception.pth"
    package.feature_extractor_inceptionv3 = module
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_inception_reads_adms_layers(fidelity):
    extractor = Inception.load("cpu")
    images = torch.tensor([0, 1 / 255, 0.499 / 255, 0.501 / 255, 1]).repeat(2, 3, 5, 1)
    features = extractor(images)
    assert extractor.module.pixels[0, 0, 0].tolist() == [0, 1, 0, 1, 255]
    assert (features.pool.shape, features.spatial.shape, features.probabilities.shape) == (
        (2, 2048),
        (2, 2023),
        (2, 1008),
    )
    # TensorFlow keeps channels last, and the covariances of a reference file are in that order.
    channels_last = np.moveaxis(extractor.module.maps.numpy(), 1, 3)[..., :7]
    np.testing.assert_array_equal(features.spatial, channels_last.reshape(2, -1))
    torch.testing.assert_close(features.probabilities.sum(1), torch.ones(2))
    assert extractor.name == INCEPTION
    assert not extractor.module.Mixed_6d.branch1x1._forward_hooks


def test_inception_says_what_is_missing(fidelity, monkeypatch):
    def offline(*args, **options):
        raise URLError("no route to host")

    monkeypatch.setattr(fidelity, "FeatureExtractorInceptionV3", offline)
    with pytest.raises(LoadError, match=r"no route to host.*; connect to the network or put them at .*inception.pth"):
        Inception.load("cpu")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.delitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3")
    with pytest.raises(LoadError, match=r"need torch-fidelity .*; install it with pip install 'numprune\[images\]'"):
        Inception.load("cpu")


def test_inception_fits_the_network_of_torch_fidelity(monkeypatch):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="needs torch-fidelity")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *args, **options: {})
    monkeypatch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    extractor = Inception.load("cpu")
    maps = []
    extractor.module.Mixed_6d.register_forward_hook(lambda module, args, output: maps.append(output))
    images = random_images(2, size=32)
    features = extractor(images)
    assert (features.pool.shape, features.spatial.shape, features.probabilities.shape) == (
        (2, 2048),
        (2, 2023),
        (2, 1008),
    )
    # The block's output begins with the branch whose first channels sFID takes.
    first = maps[0][:, :7].permute(0, 2, 3, 1).reshape(2, -1)
    torch.testing.assert_close(features.spatial, first, rtol=0, atol=0)
    pool, logits = extractor.module((images * 255).round().to(torch.uint8))
    torch.testing.assert_close(features.pool, pool)
    torch.testing.assert_close(features.probabilities, logits.softmax(1))
