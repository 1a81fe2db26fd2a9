"""Whether a task of a user's data can be asked and judged (source: ours)."""

from __future__ import annotations

from model.boundary.errors import MoonflowError
from model.data.samples.sample import Sample
from model.rl.rewards import EXAMINED, TESTS, score
from model.rl.tools.toolset import environment_array
from model.rl.verifier import checked_tests


def check_task(sample: Sample) -> None:
    """Check that a task asks something and that its reward can judge by its answer.

    A sample without a reward is not a task and passes.

    Raises:
        MoonflowError: nothing is asked, a later turn of the user shows media, it declares tools of its own, the reward
            is unknown or cannot judge by the answer, or the array of the environment cannot be read.
    """
    if not sample.reward:
        return
    if sample.declared_tools:
        raise MoonflowError(f"sample {sample.key}: it has a reward, and declares tools that nothing here can run")
    if not sample.messages or sample.messages[0].get("role") == "assistant":
        raise MoonflowError(f"sample {sample.key}: it has a reward, but no turn before the assistant's that asks")
    if not all(isinstance(question.get("content"), str) for question in sample.later_questions):
        raise MoonflowError(f"sample {sample.key}: it has a reward, so its later turns of the user must be plain texts")
    try:
        if sample.reward == TESTS:
            checked_tests(sample.answer)
        elif sample.reward in EXAMINED:
            EXAMINED[sample.reward](sample.answer)
        else:
            score(sample.reward, "0", sample.answer)
    except (MoonflowError, TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        raise MoonflowError(
            f"sample {sample.key}: reward {sample.reward!r} cannot judge by its answer ({error}): fix the answer; "
            "the table of rewards in model/rl/README.md says what it must be"
        ) from None
    environment_array(sample)
