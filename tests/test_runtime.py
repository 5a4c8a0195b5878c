"""Devices, random streams, frozen models and batch sizes."""

import threading

import pytest
import torch
from accelerator import DEVICE, StandIn
from torch import nn

from nbsupport import models, runtime
from nbsupport.runtime import fast_bfloat16

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def small_model():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(2, 2))


class Stateless(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2]


class OnlyBuffer(Stateless):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, device="meta"))


def test_best_device_is_cuda_where_there_is_one(monkeypatch):
    for available, expected in ((True, CUDA), (False, CPU)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda answer=available: answer)
        assert runtime.best_device() == expected


@pytest.mark.parametrize(
    ("model", "x_device", "expected"),
    [
        (nn.Linear(1, 1, device="meta"), "cpu", "meta"),
        (OnlyBuffer(), "cpu", "meta"),
        (Stateless(), "cpu", "cpu"),
        (Stateless(), "meta", "meta"),
    ],
)
def test_device_of_is_the_models_or_else_the_images(model, x_device, expected):
    assert runtime.device_of(model, torch.zeros(1, device=x_device)).type == expected


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False, "cpu_name": "bf16"}, False),
        ({}, False),
    ],
)
def test_a_cpu_is_fast_in_bfloat16_where_it_says_so(able, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert fast_bfloat16(CPU) == expected
    assert not fast_bfloat16(torch.device("meta"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not fast_bfloat16(CPU)


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_emulates_bfloat16_is_not_fast_in_it(native, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert fast_bfloat16(CUDA) == native


def test_without_fast_bfloat16_mixed_precision_warns_and_is_float32(monkeypatch):
    assert runtime.usable("mixed", CPU) == "mixed"
    monkeypatch.setattr(runtime, "fast_bfloat16", lambda device: False)
    assert runtime.usable("float32", CPU) == "float32"
    with pytest.warns(UserWarning, match="this cpu has no fast bfloat16: precision 'mixed' would be slower"):
        assert runtime.usable("mixed", CPU) == "float32"


def draws(*key):
    return torch.randint(2**62, (4,), generator=runtime.seeded(*key)).tolist()


def test_streams_repeat():
    assert draws(0, "attacks", "FGSM") == draws(0, "attacks", "FGSM")
    # The values themselves: a stored run must be repeatable by a later version.
    assert runtime.seeded(0, "attacks").initial_seed() == 19993779485932866


def test_streams_differ():
    keys = [(0,), (1,), (0, "a"), (0, "b"), (1, "a"), (0, "a", "b"), (0, "ab"), (0, "a", ""), (0, ("a", "b")), (0, 1)]
    assert len({tuple(draws(*key)) for key in keys}) == len(keys)


def test_a_stream_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    draws(0, "attacks")
    assert torch.get_rng_state().equal(before)


def state(model):
    return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("failing", [False, True])
def test_frozen_restores_every_module_and_parameter(failing):
    model = small_model().train()
    model[1].eval()  # as in fine-tuning: one layer in another mode
    model[0].bias.requires_grad_(False)
    before = state(model)
    try:
        with runtime.frozen(model) as same:
            assert same is model
            assert not any(flag for flags in state(model) for flag in flags)
            with runtime.frozen(model):  # nested, as when an attack calls another
                pass
            assert not any(flag for flags in state(model) for flag in flags)
            if failing:
                raise RuntimeError("inside")
    except RuntimeError:
        assert failing
    assert state(model) == before


def test_frozen_gives_gradients_for_images_only():
    model = small_model()
    x = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with runtime.frozen(model):
        model(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in model.parameters())


def flags():
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    return cudnn.conv.fp32_precision, products.fp32_precision, cudnn.deterministic, cudnn.benchmark


def test_frozen_computes_in_full_float32_and_repeatably():
    before = flags()
    assert before != ("ieee", "ieee", True, False)
    with runtime.frozen(small_model()):
        assert flags() == ("ieee", "ieee", True, False)
        with runtime.frozen(small_model()):
            pass
        assert flags() == ("ieee", "ieee", True, False)
    assert flags() == before
    with runtime.constant(small_model()):
        assert flags() == before


def test_contexts_of_two_threads_that_overlap_leave_the_flags_as_they_were():
    """The first to enter is the first to leave: alone, each would restore what it has found."""
    before, entered, leave = flags(), threading.Event(), threading.Event()

    def other():
        with runtime.frozen(small_model()):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with runtime.frozen(small_model()):
        thread.start()
        assert entered.wait(60)
    assert flags() == ("ieee", "ieee", True, False), "the other thread is still inside"
    leave.set()
    thread.join()
    assert flags() == before


def test_flags_are_restored_after_an_error():
    before = flags()
    with pytest.raises(RuntimeError, match="inside"), runtime.frozen(small_model()):
        raise RuntimeError("inside")
    assert flags() == before


@pytest.mark.parametrize("in_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 224, 224), (1, 1, 1)])
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_batches_are_powers_of_two_within_bounds(in_shape, device):
    rows = runtime.rows_per_batch(Stateless(), in_shape, device)
    assert rows & (rows - 1) == 0
    assert 16 <= rows <= (1024 if device is CPU else 16384)
    assert rows <= runtime.rows_per_batch(Stateless(), (1, 8, 8), device) or in_shape == (1, 1, 1)


def test_a_batch_of_mnist_is_what_was_measured():
    assert runtime.rows_per_batch(Stateless(), (1, 28, 28), CPU) == 128
    assert runtime.rows_per_batch(Stateless(), (1, 28, 28), CUDA) == 8192


def test_a_model_may_state_its_batch():
    model = Stateless()
    model.batch_rows = {"cuda": 5}
    assert runtime.rows_per_batch(model, (1, 28, 28), CUDA) == 5
    assert runtime.rows_per_batch(model, (1, 28, 28), CPU) == 128


def test_kept_bytes_are_those_of_the_tensors_that_a_backward_pass_needs():
    """The pixels, for the convolution, and what the ReLU gives, for itself and, flattened, for the next layer."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    assert runtime.kept_bytes(model, (1, 8, 8)) == 4 * (64 + 4 * 64)
    with StandIn():
        assert runtime.kept_bytes(small_model().to(DEVICE), (1, 3, 3)) == runtime.kept_bytes(small_model(), (1, 3, 3))


@pytest.mark.parametrize(
    ("name", "in_shape", "rows"),
    [("digits_cnn", (1, 8, 8), 16384), ("mnist_cnn", (1, 28, 28), 8192), ("resnet20", (3, 32, 32), 2048)],
)
def test_a_gpu_s_batch_of_a_small_network_is_that_of_the_rule_of_thumb(name, in_shape, rows):
    model = models.build(name, in_shape=in_shape, num_classes=10)
    assert runtime.rows_per_batch(model, in_shape, CUDA) == rows
    assert rows * runtime.kept_bytes(model, in_shape) <= 8 * 2**30


def test_a_gpu_s_batch_of_a_large_network_fits_in_its_memory():
    """`wrn_34_10`: each of 15 units keeps five tensors or more, of 160, 320, 640 channels at 32^2, 16^2, 8^2 pixels."""
    model = models.build("wrn_34_10", in_shape=(3, 32, 32), num_classes=10)
    rows, size = runtime.rows_per_batch(model, (3, 32, 32), CUDA), runtime.kept_bytes(model, (3, 32, 32))
    assert size > 4 * 5 * 5 * (160 * 32**2 + 320 * 16**2 + 640 * 8**2)
    assert rows * size <= 8 * 2**30 < 2 * rows * size
    assert rows & (rows - 1) == 0
    assert runtime.rows_per_batch(model, (3, 32, 32), CPU) == 32


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("wanted", [True, False])
def test_a_model_gets_the_memory_format_it_states(channels, wanted):
    model = Stateless()
    model.channels_last = wanted
    x = torch.rand(2, channels, 4, 5, generator=torch.Generator().manual_seed(0))
    y = runtime.laid_out(model, x)
    assert y.equal(x)
    assert y.stride() == ((20 * channels, 1, 5 * channels, channels) if wanted else (20 * channels, 20, 5, 1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("wanted", [True, False])
def test_rows_become_images_without_a_copy(channels, wanted):
    model = Stateless()
    model.channels_last = wanted
    x = torch.rand(6, channels, 4, 5, generator=torch.Generator().manual_seed(0))
    for given in (x, x.contiguous(memory_format=torch.channels_last), x[:1].expand(6, -1, -1, -1), x[:0]):
        rows = runtime.as_rows(model, given)
        assert rows.is_contiguous()
        images = runtime.as_images(model, rows, (channels, 4, 5))
        assert images.equal(given)
        assert images.data_ptr() == rows.data_ptr()
        assert images.stride() == runtime.laid_out(model, given).stride()
    picked = runtime.as_images(model, runtime.as_rows(model, x)[[4, 1, 1]], (channels, 4, 5))
    assert picked.equal(x[[4, 1, 1]])


def test_logits_and_classes_come_in_the_order_of_the_images_whatever_the_batch():
    model, x = small_model(), torch.rand(7, 1, 4, 4)
    model[-1] = nn.Linear(8, 2)
    model.batch_rows = {"cpu": 3}
    z = runtime.logits(model, x)
    assert not z.requires_grad
    torch.testing.assert_close(z, model.eval()(x).detach())
    assert runtime.predict(model, x).tolist() == z.argmax(1).tolist()


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 7, 9, 12, 13, 17])
def test_batches_of_a_gpu_have_few_sizes_and_the_rows_of_the_cpu(rows):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    x, seen = torch.rand(rows, 1, 2, 2), []
    model.register_forward_hook(lambda module, given, z: seen.append(len(z)))

    def looked_at(x):
        z = runtime.forward(model, x.requires_grad_())
        return z.detach(), torch.autograd.grad(z.square().sum(), x)[0]

    expected = looked_at(x.clone())
    with StandIn():
        model = model.to(DEVICE)
        found = looked_at(x.to(DEVICE))
    least = min(size for k in range(6) for size in (2**k, 3 * 2**k) if size >= rows)
    assert seen == [rows, least if rows else 0]
    for there, here in zip(found, expected, strict=True):
        torch.testing.assert_close(there.host, here)


def test_logits_of_wrong_shape_are_refused_whatever_a_batch_is_filled_with():
    model = nn.Flatten(0)
    with pytest.raises(ValueError, match=r"expected logits of shape \(5, classes\) from the model, got \(20,\)"):
        runtime.forward(model, torch.rand(5, 1, 2, 2))
    with StandIn(), pytest.raises(ValueError, match=r"expected logits of shape \(6, classes\) from the model"):
        runtime.forward(model, torch.rand(5, 1, 2, 2).to(DEVICE))


def test_what_is_sent_arrives_without_waiting():
    with StandIn() as standin:
        there = runtime.sent(torch.arange(3), DEVICE)
    assert there.host.tolist() == [0, 1, 2]
    assert standin.waits == []
    assert runtime.sent(torch.arange(3), CPU).tolist() == [0, 1, 2]
