"""KFP interface of finish."""

from kfp import dsl

from components.runtime.image import PIPELINE
from components.runtime.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("finish")
def finish(
    run_id: str,
    curve_points: int,
    status: dsl.PipelineTaskFinalStatus,
    report: dsl.Output[dsl.HTML],
    card: dsl.Output[dsl.Markdown],
):
    """Summary and report of the run. The exit handler: it runs after success and after failure alike."""
    from components.runtime.entry import close

    error = status.error_message if status.state == "FAILED" else ""
    close(locals(), error=error, report=report, card=card)
