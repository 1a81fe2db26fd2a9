"""KFP interface of finish."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("finish")
def finish(
    run_id: str,
    status: dsl.PipelineTaskFinalStatus,
    report: dsl.Output[dsl.HTML],
    card: dsl.Output[dsl.Markdown],
    curve_points: int,
    tasks: str = "",
):
    """Write the summary and the report of the run, after a success and after a failure (it is the exit handler)."""
    from components.runtime.kfp.entry import close

    error = status.error_message if status.state == "FAILED" else ""
    close(locals(), error=error, report=report, card=card)
