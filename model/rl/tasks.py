"""Whether a task of a user's data can be asked and judged (source: ours)."""

from __future__ import annotations

from model.data.sample import Sample
from model.errors import MoonflowError
from model.rl.rewards import score
from model.rl.tools.toolset import environment_array


def check_task(sample: Sample) -> None:
    """Nothing for a sample without a reward: it is no task.

    Raises:
        MoonflowError: nothing is asked; an unknown reward, or one that cannot judge by the answer; an environment whose
            array cannot be read.
    """
    if not sample.reward:
        return
    if not sample.messages or sample.messages[0].get("role") == "assistant":
        raise MoonflowError(f"sample {sample.key}: it has a reward, but no turn before the assistant's that asks")
    try:
        score(sample.reward, "0", sample.answer)
    except (MoonflowError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise MoonflowError(
            f"sample {sample.key}: reward {sample.reward!r} cannot judge by its answer ({error}): mend the answer; "
            "model/rl/rewards.py says what it must be"
        ) from None
    environment_array(sample)
