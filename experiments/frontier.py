"""Can LeakGAN be moved beyond an MLE model tuned by temperature? Tries on the synthetic task, failures included.

    python experiments/frontier.py

Trains what is missing, prints Markdown and writes it with a picture to `results/SCALE/`. What looks best is tried once
more on other seeds. `NOTES.md` says what it came to.
"""

import compare
import lab

TRIES = {
    "the Worker's rewards centred": {"advantage": "centred"},
    "the Worker's rewards standardised": {"advantage": "standardised"},
    "centred, 16 completions": {"advantage": "centred", "completions": 16},
    "goal horizon 2": {"goal_horizon": 2},
    "10 epochs a draw for the discriminator": {"discriminator_epochs": 10},
    "discriminator's dropout 0.5": {"dropout_keep": 0.5},
    "adversarial step size 3e-4": {"adversarial_lr": 3e-4},
    "centred, adversarial step size 3e-4": {"advantage": "centred", "adversarial_lr": 3e-4},
    "MLE every 3 iterations": {"interleave_every": 3},
    "centred, MLE every 3 iterations": {"advantage": "centred", "interleave_every": 3},
}
AGAIN = ("adversarial step size 3e-4",)  # the lowest at equal NLL_gen of the ten


if __name__ == "__main__":
    lab.main("frontier.py", __doc__, lambda args: compare.run("Tries at the frontier", "frontier", TRIES, args, AGAIN))
