"""Data parallel on paper: what the devices send each other in a step, against what they compute in it.

    python -m benchmarks.communication
    python -m benchmarks.communication --tflops 60

Nothing is timed and no device is needed: parameters are counted in the shapes that `training.init` makes, multiply-adds
as `benchmarks/work.py` counts them, and links and speed are the assumptions printed with the table, which is that of
`docs/scaling.md`. Parameters are replicated and batches divided, so what is sent is the gradient of the network that a
step updates: Manager and Worker, or D. Each of `n` devices sends `2 (n - 1) / n` times its 4 bytes a number, one ring
after the other, while nothing is computed.
"""

import functools
import itertools
from typing import NamedTuple

import jax

from benchmarks import measure, work
from leakgan_jax import preset, training
from leakgan_jax.config import Config

PRESETS = ("synthetic20", "coco")
BYTES = 4  # of a float32


class Link(NamedTuple):
    """What `devices` of a kind send through."""

    name: str
    devices: int
    gigabytes: float  # that one device sends a second


# Vendors' figures. An H100 has NVLink at 900 GB/s, both directions together; InfiniBand NDR has 400 Gbit/s a port. The
# interconnect of a TPU v5p has 4,800 Gbit/s a chip, 100 GB/s for each of its six links: a ring that goes both ways
# round one axis of the torus uses two.
LINKS = (
    Link("NVLink, 450 GB/s", 8, 450),
    Link("InfiniBand NDR, 50 GB/s", 64, 50),
    Link("InfiniBand NDR, 50 GB/s", 512, 50),
    Link("TPU v5p, 200 GB/s", 8, 200),
    Link("TPU v5p, 200 GB/s", 64, 200),
    Link("TPU v5p, 200 GB/s", 512, 200),
)


class Work(NamedTuple):
    """One step, or one iteration of many: what is computed, and what is sent."""

    name: str
    computed: float  # multiply-adds of the whole batch, and in an iteration of the sentences that it draws
    sent: float  # numbers in the gradients of all its updates together


def parameters(c: Config) -> dict[str, int]:
    """Numbers in each network's parameters, from shapes alone."""
    params = jax.eval_shape(functools.partial(training.init, c), jax.random.key(0)).params
    return {name: sum(leaf.size for leaf in jax.tree.leaves(net)) for name, net in params._asdict().items()}


def kinds(c: Config) -> list[Work]:
    """The steps of a config, and its adversarial iteration: generator steps, then draws with D's epochs on them."""
    sizes = parameters(c)
    generator = sizes["manager"] + sizes["worker"]
    steps = c.adversarial_draws * c.discriminator_epochs * (2 * c.draw_size // c.batch_size)
    mle = Work("MLE step", work.mle_step(c, c.batch_size), generator)
    adversarial = Work("generator step", work.generator_step(c), generator)
    discriminator = Work("D step", work.discriminator_step(c, c.batch_size), sizes["discriminator"])
    iteration = Work(
        f"iteration, {steps:,} D steps",
        c.generator_steps * adversarial.computed + c.adversarial_draws * work.discriminator_draw(c, c.draw_size),
        c.generator_steps * adversarial.sent + steps * discriminator.sent,
    )
    return [mle, adversarial, discriminator, iteration]


def sending(kind: Work, link: Link) -> float:
    """Milliseconds."""
    return 1e3 * 2 * (link.devices - 1) / link.devices * BYTES * kind.sent / (link.gigabytes * 1e9)


def computing(kind: Work, flops: float) -> float:
    """Milliseconds on one device."""
    return 1e3 * 2 * kind.computed / flops


def tables(name: str, c: Config, flops: float) -> list[str]:
    """Markdown: sizes of a config, then its steps with one batch divided, and with a batch for each device."""
    sizes, all_kinds = parameters(c), kinds(c)
    networks = ", ".join(f"{network.title()} {size:,}" for network, size in sizes.items())
    setting = f"V {c.vocab_size:,}, T {c.length}, F {c.feature_dim:,}, batch {c.batch_size}, N {c.completions}"
    lines = [f"### {name}", "", f"{setting}. Parameters: {networks}.", ""]
    lines += ["| | MB of gradients | million multiply-adds | ms on one device |", "|---|--:|--:|--:|"]
    for kind in all_kinds:
        megabytes, products = BYTES * kind.sent / 1e6, kind.computed / 1e6
        lines.append(f"| {kind.name} | {megabytes:,.1f} | {products:,.0f} | {_number(computing(kind, flops))} |")
    lines += ["", f"One batch of {c.batch_size} divided among the devices:", ""]
    lines += ["| | devices | link | ms sending | ms computing | times as fast as one |", "|---|--:|---|--:|--:|--:|"]
    for kind, link in itertools.product(all_kinds, LINKS):
        if link.devices <= c.batch_size:
            sent, alone = sending(kind, link), computing(kind, flops)
            share = alone / link.devices
            numbers = f"{_number(sent)} | {_number(share)} | {alone / (sent + share):.1f}"
            lines.append(f"| {kind.name} | {link.devices} | {link.name} | {numbers} |")
    lines += ["", f"A batch of {c.batch_size} on each device:", ""]
    lines.append("| | devices | link | sentences in all | ms sending | ms computing | of it computing | break-even |")
    lines.append("|---|--:|---|--:|--:|--:|--:|--:|")
    for kind, link in itertools.product(all_kinds[:-1], LINKS):
        sent, alone = sending(kind, link), computing(kind, flops)
        numbers = f"{_number(sent)} | {_number(alone)} | {alone / (sent + alone):.0%}"
        even = _number(c.batch_size * sent / alone)
        total = f"{link.devices * c.batch_size:,}"
        lines.append(f"| {kind.name} | {link.devices} | {link.name} | {total} | {numbers} | {even} |")
    return lines


def _number(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(argv: list[str] | None = None) -> None:
    parser = measure.parser("benchmarks.communication", __doc__ or "")
    parser.add_argument(
        "--tflops", type=measure.positive, default=20, metavar="N", help="that a device is assumed to reach"
    )
    args = parser.parse_args(argv)
    print(f"Assumed: {args.tflops} TFLOP/s in float32 reached on every device, however few its sentences; links at")
    print("their vendors' figures, with no time to start; nothing computed while sending. Break-even is the number of")
    print("sentences a device at which sending takes as long as computing.")
    for name in PRESETS:
        print("\n" + "\n".join(tables(name, preset(name), args.tflops * 1e12)))


if __name__ == "__main__":
    main()
