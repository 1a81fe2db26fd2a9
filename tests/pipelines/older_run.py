"""The folder of a run that was begun when the pipeline had no visual_rl and rejection_sft."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pipelines.profile import Profile


def write_older_run(folder: Path, profile: Profile) -> None:
    """Write what ``moonflow run`` leaves there: joint_rl kept the successes that visual_rl keeps now."""
    text = re.sub(r"^\[(task\.)?(visual_rl|rejection_sft)\]\n(?:.+\n)*\n", "", profile.as_toml(), flags=re.MULTILINE)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "profile.toml").write_text(text.replace("[joint_rl]\n", "[joint_rl]\nkept_successes = 8\n"))
    (folder / "arguments.json").write_text(json.dumps({"p00_run_id": profile.run.name}))
