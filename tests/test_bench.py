"""The timed loops: passes counted right, the plain loops right, peers left out with a reason. No test looks at time."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from nbsupport import attacks, bench, boundary, files, models, presets, region, runtime
from nbsupport.bench import Narrator, Results, Subject, measure, published
from nbsupport.bench.measure import Case, Measured


def half_space(dim: int = 64) -> models.HalfSpace:
    """A boundary at distance .5 from the middle grey of images with `dim` pixels."""
    normal = torch.randn(dim, generator=torch.Generator().manual_seed(1))
    normal /= normal.norm()
    return models.HalfSpace(normal, float(normal.sum() / 2 + 0.5), num_classes=3)


def of_half_space(n: int = 6) -> Subject:
    x = 0.5 + 0.02 * torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    settings = presets.settings("digits", overrides={"magnitude_max": 0.2, "samples": 20})
    return Subject("half-space", half_space(), x, torch.zeros(n, dtype=torch.int64), settings, flops=128.0)


def measured(s: Subject, call: Callable[[Subject], object]) -> Measured:
    """What `call(s)` returns, and the passes that are counted meanwhile."""
    return measure.measure(Case("test", lambda model, x, y, steps: call(s), 1, 1), s)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own pace is measured by one batch."""
    monkeypatch.setattr(measure, "PACE_SECONDS", 0.001)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def narrator(told: list[str]) -> Narrator:
    return Narrator(told.append, every=0.0)


@pytest.fixture(scope="session")
def digits_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stored `digits_cnn`, trained as the benchmark trains its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NBSUPPORT_DATA", raising=False)
        trained = bench.obtain(4, None, Narrator(lambda line: None)).model
    path = tmp_path_factory.mktemp("bench") / "digits.safetensors"
    models.save(trained, path)
    return path


# the subject


def test_the_subject_is_trained_on_digits_where_mnist_is_not_at_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, narrator: Narrator, told: list[str]
) -> None:
    monkeypatch.setenv("NBSUPPORT_DATA", str(tmp_path))
    monkeypatch.setitem(measure.EPOCHS, "digits", 2)
    found = bench.obtain(5, None, narrator)
    assert found.name == "digits_cnn on digits"
    assert len(found.x) == 5
    assert torch.equal(runtime.predict(found.model, found.x), found.y)
    assert told[0] == "digits_cnn is trained on 1,297 images of digits, 2 epochs, 42 batches"
    assert any("/42 batches" in line and "left" in line for line in told)


def test_a_stored_model_is_not_trained(digits_model: Path, narrator: Narrator, told: list[str]) -> None:
    found = bench.obtain(1000, digits_model, narrator)
    assert told == []
    assert 400 < len(found.x) < 500  # those of the 500 that it classifies correctly


def test_the_images_are_the_first_that_are_classified_correctly(digits_model: Path, narrator: Narrator, digits) -> None:
    found = bench.obtain(20, digits_model, narrator)
    right = runtime.predict(found.model, digits.x) == digits.y
    assert torch.equal(found.x, digits.x[right][:20])
    assert torch.equal(found.first(3).x, found.x[:3])


def test_mnist_is_the_subject_where_it_is_at_hand(mnist_root: Path) -> None:
    assert measure._mnist_is_here()


def test_a_model_for_other_images_is_refused(tmp_path: Path, narrator: Narrator) -> None:
    models.save(models.build("digits_cnn", in_shape=(1, 9, 9), num_classes=10), tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"expected a model for images of 1x8x8 \(digits\), .* got 1x9x9 in .*m\.safe"):
        bench.obtain(4, tmp_path / "m.safetensors", narrator)


def test_a_model_that_is_never_right_is_refused(tmp_path: Path, narrator: Narrator, monkeypatch) -> None:
    models.save(models.build("digits_cnn", in_shape=(1, 8, 8), num_classes=10), tmp_path / "m.safetensors")
    monkeypatch.setattr(runtime, "predict", lambda model, x: torch.full((len(x),), 11))
    with pytest.raises(ValueError, match="that classifies images of digits, got one that is never right"):
        bench.obtain(4, tmp_path / "m.safetensors", narrator)


@pytest.mark.parametrize(("name", "side", "mflop"), [("mnist_cnn", 28, 27.8), ("digits_cnn", 8, 1.8)])
def test_flops_of_a_forward_pass(name: str, side: int, mflop: float) -> None:
    model = models.build(name, in_shape=(1, side, side), num_classes=10)
    assert measure.forward_flops(model, torch.zeros(1, 1, side, side)) / 1e6 == pytest.approx(mflop, abs=0.06)


# counting


def test_images_that_pass_are_counted_forward_and_backward() -> None:
    s = of_half_space(5)
    heard: list[int] = []

    def call(model: torch.nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
        with torch.no_grad():
            logits = model(x)
        x = x[:2].requires_grad_()
        torch.autograd.grad(model(x)[:, 1].sum(), x)
        return logits

    run = measure.measure(Case("test", call, 1, 1), s, heard.append)
    assert torch.equal(run.result, s.model(s.x))
    assert (run.forwards, run.backwards) == (7, 2)
    assert run.passes_per_s == 9 / run.seconds
    assert heard == [5, 7]  # and no more when the measurement is over


def test_the_share_of_the_matrix_rate_counts_every_pass(narrator: Narrator) -> None:
    s = dataclasses.replace(of_half_space(), flops=27.8e6)
    row = next(bench.table_rows("attacks", s, 1e9, narrator))
    assert (row["bench"], row["what"], row["images"]) == ("engine", "forward and backward, float32", 1024)
    assert row["matrix_share"] == pytest.approx(27.8e6 * row["passes_per_s"] / 1e9)


@pytest.mark.parametrize("index", range(11))
def test_passes_counted_here_are_those_that_the_attack_states(
    index: int, digits_model: Path, narrator: Narrator
) -> None:
    s = bench.obtain(3, digits_model, narrator)
    listed = bench.all_attacks(s, narrator)[:8] + bench.published_attacks(s, narrator)
    assert len(listed) == 11
    case = dataclasses.replace(listed[index], steps=6)
    run = measure.measure(case, s)
    assert isinstance(run.result, attacks.Attack)
    assert run.forwards == int(run.result.forwards.sum())
    assert run.backwards == int(run.result.backwards.sum())
    checks = 12 * 20 * 3  # before, after, and in the bisection, of all views
    assert run.forwards + run.backwards <= 3 * case.passes * 6 / listed[index].steps + checks


def test_pgd_passes(narrator: Narrator) -> None:
    s = of_half_space()
    run = measure.measure(bench.all_attacks(s, narrator)[0], s)
    row = bench.attacked(s, run)
    assert (row["forwards_per_image"], row["backwards_per_image"]) == (43, 40)  # before, 40 and the last, after
    assert row["success"] == 1.0
    assert row["mean_rms"] == pytest.approx(0.15, abs=0.01)  # at a corner of the ball: every pixel moves by eps


def test_the_model_alone_passes_full_batches() -> None:
    s = of_half_space()
    run = measure.measure(measure.batch(s, "float32", backward=True), s)
    assert run.result == 1024  # what the rule of thumb says of 64 pixels
    assert run.forwards == run.backwards
    assert run.forwards % 1024 == 0
    run = measure.measure(dataclasses.replace(measure.batch(s, "mixed", backward=False, rows=6), seconds=0), s)
    assert (run.result, run.forwards, run.backwards) == (6, 6, 0)


def test_waits_for_a_gpu_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch reports them, where it is asked to; other warnings are none of them."""
    modes: list[str | int] = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def call() -> str:
        for text in ["called a synchronizing CUDA operation (from somewhere)"] * 3 + ["another"]:
            warnings.warn(text, stacklevel=1)
        return "done"

    assert measure.counting_waits(call, torch.device("cuda")) == ("done", 3)
    assert modes == [0, "warn", 0]
    assert measure.counting_waits(lambda: "done", torch.device("cpu")) == ("done", None)


@pytest.mark.gpu
def test_waits_for_a_real_gpu_are_counted(cuda: torch.device) -> None:
    x = torch.arange(4, device=cuda)
    assert measure.counting_waits(lambda: [int(x[1]), x.sum(), x.tolist()], cuda)[1] == 2


def test_rows_of_a_gpu_say_how_often_the_host_waited(narrator: Narrator, monkeypatch: pytest.MonkeyPatch) -> None:
    all_attacks = bench.all_attacks
    monkeypatch.setattr(bench, "all_attacks", lambda *given: all_attacks(*given)[:1])
    for waits, columns in ((None, set()), (7, {"waits", "images_per_s"})):
        monkeypatch.setattr(measure, "counting_waits", lambda call, device, waits=waits: (call(), waits))
        row = next(
            row for row in bench.table_rows("attacks", of_half_space(), 1e9, narrator) if row["bench"] != "engine"
        )
        assert {"waits", "images_per_s"} & row.keys() == columns
        if waits:
            assert (row["waits"], row["images_per_s"]) == (7, pytest.approx(6 / row["seconds"]))
            text = Results("a", {"device_name": "b", "threads": 1, "torch": "c"}, [], {}, [row]).as_text()
            assert "images/s" in text
            assert "waits" in text


# the published loops


def test_the_whole_batch_search_comes_near_the_exact_distance() -> None:
    s = of_half_space()
    x_adv = published.carlini_wagner(s.model, s.x, s.y, search_steps=6, steps=200, lr=0.01)
    exact = models.HalfSpace.distance(s.model, s.x)
    assert torch.equal(runtime.predict(s.model, x_adv), torch.ones(6, dtype=torch.int64))
    l2 = (x_adv - s.x).flatten(1).norm(dim=1)
    assert bool((l2 >= 0.999 * exact).all())
    assert bool((l2 <= 1.1 * exact).all())


def test_the_whole_batch_search_stops_for_all_at_once() -> None:
    s = of_half_space(4)
    run = measured(s, lambda s: published.carlini_wagner(s.model, s.x, s.y, search_steps=3, steps=50))
    assert run.forwards == run.backwards
    assert run.forwards % 4 == 0  # always the whole batch
    iterations = run.forwards // 4
    assert 3 <= iterations <= 150
    assert iterations % 5 in (0, 1, 2, 3)  # each of the three ends at 50, or right after a look at a multiple of 5


def test_the_whole_batch_search_returns_the_image_where_it_finds_nothing() -> None:
    s = of_half_space()
    x_adv = published.carlini_wagner(s.model, s.x, s.y, search_steps=1, steps=1)
    assert torch.equal(x_adv, s.x)


def test_the_published_scan_is_the_definition() -> None:
    s = of_half_space(3)
    grid = s.settings.magnitudes
    directions = boundary.directions(64, 64, negate=True, generator=runtime.seeded(0, "test"))
    run = measured(s, lambda s: published.scan(s.model, s.x, directions, grid))
    distance, adjacent = run.result
    pooled = boundary.probe(s.model, s.x, directions, grid, search="scan")
    assert torch.equal(distance, pooled.distance)
    assert torch.equal(adjacent, pooled.adjacent)
    assert 0 < int(pooled.reached.sum()) < pooled.reached.numel()
    steps = torch.where(distance.isinf(), len(grid), (distance / grid[0]).round())
    assert run.forwards == 3 + int(steps.sum())  # the image, and every magnitude until the ray has crossed


def test_the_published_vote_is_that_of_all_points(digits_model: Path, narrator: Narrator) -> None:
    s = bench.obtain(30, digits_model, narrator)
    points = torch.rand(20, 64, generator=runtime.seeded(0, "bench"))
    run = measured(s, lambda s: published.vote(s.model, s.x, 2 * points - 1, radius=0.4))
    pooled = region.classify(s.model, s.x, radius=0.4, samples=20, stop="none", generator=runtime.seeded(0, "bench"))
    assert torch.equal(run.result, pooled.label)
    assert run.forwards == 30 * 20


# success, re-checked


def test_images_are_judged_in_float32() -> None:
    s = of_half_space(3)
    normal = models.HalfSpace.get_buffer(s.model, "normal").view(1, 8, 8)
    far = (s.model.distance(s.x) + 0.01).float()[:, None, None, None] * normal
    x_adv = s.x + torch.stack((far[0], 0 * far[1], 0.5 * far[2]))
    _, success, rms = bench.judged(s, x_adv)
    assert success.tolist() == [True, False, False]
    assert rms[0] == pytest.approx(float(far[0].norm()) / 8, rel=1e-4)
    assert rms[1] == 0


def test_an_image_out_of_range_is_judged_within_it() -> None:
    s = of_half_space(1)
    normal = s.model.get_buffer("normal").view(1, 1, 8, 8)
    x_adv, success, rms = bench.judged(s, s.x + 1000 * normal)
    assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1
    assert success.tolist() == [True]
    assert float(rms) < 1


def test_a_row_without_success_has_no_rms() -> None:
    s = of_half_space()
    run = measured(s, lambda s: s.x)
    row = bench.attacked(s, run)
    assert row["success"] == 0
    assert row["mean_rms"] is None


# peers


@pytest.fixture
def foolbox() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pytest.importorskip("foolbox")


def test_without_foolbox_one_line_says_so(monkeypatch: pytest.MonkeyPatch, narrator: Narrator, told: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    assert bench.foolbox(narrator) == []
    [line] = told
    assert "Foolbox cannot be imported, so its rows are left out" in line
    assert "pip install -e '.[peers]'" in line
    assert narrator.notes == [line.strip()]


def test_foolbox_finds_what_is_there(narrator: Narrator, told: list[str], foolbox: ModuleType) -> None:
    s = of_half_space(4)
    exact = s.model.distance(s.x)
    found = bench.foolbox(narrator)
    names = ["C&W 4 x 200", "C&W 4 x 200, tuned", "DDN 200", "FMN 200"]
    assert [case.what for case in found] == [f"Foolbox {name}" for name in names]
    assert [case.plain for case in found] == [True, False, True, True]
    never_shortens = foolbox.__version__ in bench.UNPROJECTED
    assert len(narrator.notes) == 1 + never_shortens  # what a row must be read with
    assert told == [f"  {note}" for note in narrator.notes]
    for case in found:
        run = measure.measure(dataclasses.replace(case, steps=60), s)
        _, success, rms = bench.judged(s, run.result)
        assert success.all(), case.what
        assert bool((8 * rms >= 0.999 * exact).all())
        if not (never_shortens and "FMN" in case.what):
            assert bool((8 * rms <= 1.5 * exact).all()), case.what
        assert run.forwards % 4 == run.backwards % 4 == 0
        assert 4 * 60 <= run.backwards <= run.forwards <= 4 * 4 * 61


def test_a_black_image_of_a_peer_is_no_success(foolbox: ModuleType) -> None:
    s = dataclasses.replace(of_half_space(2), model=models.HalfSpace(-torch.ones(64), -1.0).eval())  # dark is class 1

    def found_nothing(steps: int) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        """As Foolbox's Carlini & Wagner says it."""
        return lambda model, x, criterion, epsilons: (0 * x, 0 * x, torch.ones(len(x), dtype=torch.bool))

    x_adv = bench.peer(foolbox, found_nothing, s.model, s.x, s.y, steps=1)
    assert torch.equal(x_adv, s.x)
    assert not bench.judged(s, x_adv)[1].any()


def test_a_plain_model_is_a_copy_as_its_user_has_it() -> None:
    model = models.build("mnist_cnn", in_shape=(1, 28, 28), num_classes=10).train().requires_grad_(False)
    before = {name: (parameter.data_ptr(), parameter.stride()) for name, parameter in model.named_parameters()}
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    plain = measure.plain(model)
    assert model.training
    assert not plain.training
    assert all(parameter.is_contiguous() and parameter.requires_grad for parameter in plain.parameters())
    found = plain(x)
    found.sum().backward()
    torch.testing.assert_close(found, model.eval()(x))
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert before == {name: (parameter.data_ptr(), parameter.stride()) for name, parameter in model.named_parameters()}


# the whole


@pytest.mark.parametrize("what", ["attacks", "boundary", "region", "published", "all"])
def test_the_rows_of_a_benchmark(
    what: str, monkeypatch: pytest.MonkeyPatch, narrator: Narrator, told: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    monkeypatch.setattr(measure, "SIZE", 64)
    monkeypatch.setattr(measure, "memory_growth", lambda model, x, y, counts: [1_000_000 for _ in counts])
    monkeypatch.setattr(
        measure, "probe_cost", lambda model, in_shape, images, *rest: {"images": images, "growth_mb": 1.0}
    )

    def short(what: str, call: Callable[..., object], steps: int, *rest: object, **more: object) -> Case:
        return Case(what, call, steps if steps <= 20 else 2, *rest, **more)  # grid and points are 20, an attack is cut

    monkeypatch.setattr(bench, "Case", short)
    kept: list[int] = []
    monkeypatch.setattr(files, "write_text", lambda path, text: kept.append(len(json.loads(text)["rows"])))
    found = bench.run(what, of_half_space(), narrator, images=4, keep=Path("rows.json"))
    assert kept == list(range(1, len(found.rows) + 1))
    tables = {row["bench"] for row in found.rows}
    parts = {"attacks": {"engine", "attacks", "memory"}, "region": {"region"}}
    parts["boundary"] = {"boundary", "around OPTBRITTLE", "around OPTMARGIN", "scale"}
    parts["published"] = {"published"}
    assert tables == (
        set().union(*(parts[name] for name in ("attacks", "boundary", "region"))) if what == "all" else parts[what]
    )
    assert all(
        row["images"] == 4 for row in found.rows if row["bench"] in ("attacks", "boundary", "region", "published")
    )
    assert all(row["matrix_share"] > 0 for row in found.rows if row["bench"] not in ("memory", "scale"))
    assert set(found.matrix_rate) == ({"attacks", "boundary", "region"} if what == "all" else {what})
    for row in found.rows:
        if row["bench"] in ("attacks", "boundary", "region", "published"):
            assert any(row["what"] in line and "up to about" in line for line in told), row["what"]
    assert json.loads(found.as_json())["rows"] == found.rows
    text = found.as_text().splitlines()
    assert max(map(len, text)) <= 120 or text[0].startswith("half-space")
    assert all(row["what"] in found.as_text() for row in found.rows)
    assert " ".join(_heads(text)).split().count("matrix") == len(tables - {"memory", "scale"})  # no column was left out


def _heads(text: list[str]) -> list[str]:
    """The lines of column names, of which a wide table has two."""
    return [line for line in text if line.split()[:2] == ["what", "images"]]


def test_searches_are_compared_with_the_scan(narrator: Narrator) -> None:
    found = bench.table_rows("boundary", of_half_space(2), 1e9, narrator)
    rows = {row["what"]: row for row in itertools.takewhile(lambda row: row["bench"] == "boundary", found)}
    plain, scan, bracket = rows["scan, one image at a time"], rows["scan"], rows["bracket"]
    assert plain["agreement"] == scan["agreement"] == bracket["agreement"] == 1  # a half-space has no re-entry
    assert plain["speed_up"] == 1
    assert rows["refine"]["agreement"] is None
    assert rows["refine"]["differing"] is None
    assert bracket["forwards_per_ray"] < scan["forwards_per_ray"] <= 21
    assert rows["bracket, mixed"]["differing"] <= 256


def test_rays_that_differ_are_counted() -> None:
    distance, adjacent = torch.tensor([[0.1, 0.2, torch.inf]]), torch.tensor([[1, 2, -1]])
    case = Case("a search", lambda: None, 1, 1)
    first = Measured(case, (distance, adjacent), 2.0, 3, 0, 0)
    for found, differing in (
        ((distance, adjacent), 0),
        ((distance, torch.tensor([[1, 3, -1]])), 1),
        ((torch.tensor([[0.1, 0.1, 0.3]]), adjacent), 2),
    ):
        row = bench.compared(Measured(case, found, 0.5, 6, 0, 0), first)
        assert row["differing"] == differing
        assert row["agreement"] == pytest.approx(1 - differing / 3)
        assert (row["speed_up"], row["rays_per_s"], row["forwards_per_ray"]) == (4, 6, 2)


def test_votes_are_compared_with_the_plain_one(digits_model: Path, narrator: Narrator) -> None:
    s = bench.obtain(12, digits_model, narrator)
    rows = {row["what"]: row for row in bench.table_rows("region", s, 1e9, narrator)}
    assert rows["one image at a time"]["forwards_per_image"] == 100
    assert rows["all points"]["differing"] == rows["exact stop"]["differing"] == 0
    assert rows["exact stop"]["forwards_per_image"] < rows["all points"]["forwards_per_image"]
    assert rows["alpha stop"]["agreement"] == pytest.approx(1 - rows["alpha stop"]["differing"] / 12)


def test_images_by_default() -> None:
    assert [bench.most_images(what, None) for what in ("attacks", "boundary", "region", "all")] == [64, 20, 1000, 1000]
    assert bench.most_images("all", 7) == 7


def test_memory_does_not_grow_with_the_images(digits_model: Path, narrator: Narrator) -> None:
    s = bench.obtain(10, digits_model, narrator)
    few, many = bench.memory(s)
    assert (few["images"], many["images"]) == (64, 1000)
    assert many["inputs_and_results_mb"] == 2 * 1000 * 64 * 4 / 1e6
    assert 0 < few["growth_mb"] < 100
    assert many["growth_mb"] - few["growth_mb"] < 5  # activations of 1,000 images would take more than 20
    assert getattr(s.model, "batch_rows", {}).get("cpu") == 1024  # the subject's own model is left alone


def test_a_probe_takes_little_more_memory_than_its_profile() -> None:
    few, many = (measure.probe_cost(half_space(), (1, 8, 8), count, 128, [0.1]) for count in (10, 4000))
    assert (many["images"], many["rays"], many["directions_mb"]) == (4000, 128, 128 * 64 * 4 / 1e6)
    assert many["profile_mb"] == (4000 * 8 + 4000 * 128 * (4 + 2 + 1)) / 1e6
    assert many["profile_mb"] < many["growth_mb"] - few["growth_mb"] < 8 * many["profile_mb"]
    assert min(many["seconds"], many["draw_seconds"], many["rays_per_s"]) > 0


@pytest.mark.gpu
def test_memory_of_a_gpu(cuda: torch.device, digits_model: Path, narrator: Narrator) -> None:
    few, many = bench.memory(bench.obtain(10, digits_model, narrator))
    assert many["growth_mb"] - few["growth_mb"] < 3 * many["inputs_and_results_mb"]


def test_the_peak_is_that_since_the_reset() -> None:
    device = torch.device("cpu")
    block = torch.ones(60_000_000)
    high = measure.peak_bytes(device)
    del block
    assert high > 240_000_000
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system cannot reset the peak")
    measure.reset_peak(device)
    assert measure.peak_bytes(device) < high - 200_000_000


def test_the_matrix_rate_counts_two_flops_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SIZE", 8)
    monkeypatch.setattr(measure, "timed", lambda call, device: (call(), 2.0))
    assert measure.matrix_rate(torch.device("cpu")) == 2 * 8**3 / 2.0


def test_what_a_timing_is_read_with() -> None:
    found = measure.described(torch.device("cpu"))
    assert found["device"] == "cpu"
    assert found["device_name"]
    assert found["threads"] == torch.get_num_threads()
    assert found["torch"] == torch.__version__


def test_progress_is_told_in_passes(told: list[str]) -> None:
    tick = Narrator(told.append, every=0.0).ticker("scan", 200, "passes")
    tick(50)
    assert "50/200 passes" in told[0]
    assert "left" in told[0]
    quiet: list[str] = []
    Narrator(quiet.append, every=3600).ticker("scan", 200, "passes")(50)
    assert quiet == []


def test_unmeasured_cells_are_empty_and_null() -> None:
    found = Results("a", {"device_name": "b", "threads": 1, "torch": "c"}, [], {"attacks": 1e9})
    found.rows = [{"bench": "x", "what": "one", "rms": None, "empty": None}, {"bench": "x", "what": "two", "rms": 0.5}]
    assert found.as_text().splitlines() == [
        "a; b, 1 thread, torch c",
        "matrix rate: 1 GFLOP/s before attacks",
        "",
        "x",
        "what  rms",
        "one",
        "two   0.5",
    ]
    assert json.loads(found.as_json())["rows"][0]["rms"] is None
