"""Training steps of LeNet-5, VGG11 and U-Net, compared with PyTorch on the same cores.

    python benchmarks/cnn.py [--rounds 5] [--batch 128] [--models lenet vgg unet]

A step is the forward pass, the backward pass and the update in float32, by SGD with momentum or,
for U-Net, by Adam. Contestants take turns within one run, and times are medians. The plain form
computes convolutions by `lax.conv_general_dilated` alone, as accelerators do. PyTorch takes part if
it is installed, and its compiled form takes part if there is a compiler. All contestants use all
cores of the process; `taskset -c 0 python ...` measures one core.
"""

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _measure import median_ms, save
from flax import nnx

import unrolled as ur

UNET = dict(width=16, side=128, batch=4)
MODELS = ("lenet", "vgg", "unet")


def batch_of(model: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pictures (N, H, W, 3) with labels or masks."""
    rng = np.random.default_rng(0)
    N, side = (UNET["batch"], UNET["side"]) if model == "unet" else (batch, 32)
    x = rng.normal(size=(N, side, side, 3)).astype(np.float32)
    masks = rng.integers(0, 2, (N, side, side)).astype(np.float32)
    return x, masks if model == "unet" else rng.integers(0, 10, N)


def unrolled_step(model: str, batch: int, **options):
    """One training step of the model of this library, as a function without arguments."""
    make = {
        "lenet": ur.vision.models.LeNet5,
        "vgg": ur.vision.models.VGG11,
        "unet": lambda **options: ur.vision.models.UNet(UNET["width"], **options),
    }[model]
    net = make(rngs=nnx.Rngs(0), **options)
    optimizer = optax.adam(5e-3) if model == "unet" else optax.sgd(0.01, momentum=0.9)
    graph, params, stats = nnx.split(net, nnx.Param, ...)
    x, truth = map(jnp.asarray, batch_of(model, batch))

    def loss(params, stats, x, truth):
        net = nnx.merge(graph, params, stats, copy=True)
        z = net(x)
        if model == "unet":
            value = optax.sigmoid_binary_cross_entropy(z, truth)
        else:
            value = optax.softmax_cross_entropy_with_integer_labels(z, truth)
        return value.mean(), nnx.state(net, nnx.Not(nnx.Param))

    @jax.jit
    def step(params, stats, state, x, truth):
        (_, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params, stats, x, truth)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), stats, state

    state = optimizer.init(params)
    run = step.lower(params, stats, state, x, truth).compile()
    return lambda: jax.block_until_ready(run(params, stats, state, x, truth))


def torch_steps(model: str, batch: int, activation: str = "ReLU") -> dict:
    """The same step in PyTorch, eager and compiled; an empty dict if PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    x, truth = map(torch.from_numpy, batch_of(model, batch))
    x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def step_of(net):
        net = net.to(memory_format=torch.channels_last)
        entropy = torch.nn.functional.cross_entropy
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
        if model == "unet":
            entropy = torch.nn.functional.binary_cross_entropy_with_logits
            optimizer = torch.optim.Adam(net.parameters(), 5e-3)

        def step():
            optimizer.zero_grad()
            entropy(net(x), truth).backward()
            optimizer.step()

        return step

    steps = {"torch eager": step_of(torch_model(model, activation))}
    try:
        compiled = step_of(torch.compile(torch_model(model, activation)))
        compiled()
        steps["torch compiled"] = compiled
    except Exception as error:  # its compiler may fail in many ways
        print(f"torch.compile is left out: {type(error).__name__}", file=sys.stderr)
    return steps


def torch_model(model: str, activation: str):
    """LeNet-5, VGG11 or U-Net in PyTorch."""
    from torch import nn

    rho = getattr(nn, activation)
    if model == "lenet":
        return nn.Sequential(
            *(nn.Conv2d(3, 6, 5), rho(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), rho(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(400, 120), rho(), nn.Linear(120, 84), rho(), nn.Linear(84, 10)),
        )
    if model == "vgg":
        layers, C = [], 3
        for n in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
            if n:
                layers += [nn.Conv2d(C, n, 3, padding=1), nn.BatchNorm2d(n), rho()]
                C = n
            else:
                layers.append(nn.MaxPool2d(2))
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    return torch_unet(UNET["width"], rho)


def torch_unet(width: int, rho):
    """U-Net in PyTorch."""
    import torch
    from torch import nn

    def double(inputs, outputs):
        return nn.Sequential(
            *(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), rho()),
            *(
                nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                rho(),
            ),
        )

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            widths = [width * 2**j for j in range(5)]
            up = widths[-2::-1]
            self.encoder = nn.ModuleList(map(double, [3, *widths], widths))
            self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, 2) for n in up)
            self.decoder = nn.ModuleList(double(2 * n, n) for n in up)
            self.last = nn.Conv2d(width, 1, 1)

        def forward(self, x):
            skips = []
            for j, block in enumerate(self.encoder):
                x = block(nn.functional.max_pool2d(x, 2) if j else x)
                skips.append(x)
            for up, block, skip in zip(self.ups, self.decoder, skips[-2::-1]):
                x = block(torch.cat([skip, up(x)], 1))
            return self.last(x)[:, 0]

    return UNet()


def plain_step(model: str, batch: int):
    """The training step with the convolutions that accelerators use."""
    with mock.patch.object(jax, "default_backend", lambda: "gpu"):
        return unrolled_step(model, batch)


def compared(steps: dict, rounds: int) -> dict:
    """Milliseconds of each step, and the ratio of the first step to the faster step of PyTorch."""
    times = median_ms(steps, rounds=rounds, calls=3)
    others = [ms for name, ms in times.items() if name.startswith("torch")]
    return times | ({"unrolled / torch": times["unrolled"] / min(others)} if others else {})


def training_steps(model: str, batch: int, rounds: int) -> dict:
    """Milliseconds of one training step of a model."""
    steps = {"unrolled": unrolled_step(model, batch)} | torch_steps(model, batch)
    plain = {"plain form": plain_step(model, batch)}  # up to ten times as long: one turn is enough
    return compared(steps, rounds) | median_ms(plain, rounds=1, calls=3)


def activations(batch: int, rounds: int) -> dict:
    """Milliseconds of one step of LeNet-5 with the other two activations of the paper."""
    return {
        name: compared(
            {"unrolled": unrolled_step("lenet", batch, activation=name)}
            | torch_steps("lenet", batch, torch_name),
            rounds,
        )
        for name, torch_name in (("elu", "ELU"), ("mish", "Mish"))
    }


def peak_memory(batch: int) -> float:
    """Peak memory in megabytes of a separate process that trains VGG11."""
    done = subprocess.run(
        [sys.executable, __file__, "--peak", "--batch", str(batch)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    """Run all measurements and write the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128, help="batch of LeNet-5, VGG11")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    batch, rounds = arguments.batch, arguments.rounds
    if arguments.peak:
        step = unrolled_step("vgg", batch)
        for _ in range(3):
            step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
        return
    results = {"batch of LeNet-5 and VGG11": batch, "U-Net": UNET}
    for model in arguments.models:
        results[f"{model}, step, ms"] = training_steps(model, batch, rounds)
    if "lenet" in arguments.models:
        results["lenet, other activations, step, ms"] = activations(batch, rounds)
    if "vgg" in arguments.models:
        results["vgg, peak memory, MB"] = peak_memory(batch)
    save(arguments.output, results)


if __name__ == "__main__":
    main()
