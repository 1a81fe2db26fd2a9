"""The tools that the model is trained with, as a prompt declares them, and those that a caller declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolSpec:
    """A callable tool; every parameter is a required string (source: paper App. E.8 for the swarm's two)."""

    name: str
    description: str
    parameters: tuple[str, ...]

    @property
    def typescript(self) -> str:
        fields = ", ".join(f"{name}: string" for name in self.parameters)
        return f"// {self.description}\ntype {self.name} = (_: {{{fields}}}) => any;\n"

    @property
    def declaration(self) -> dict[str, Any]:
        """The tool as callers of OpenAI's API declare it, with a JSON Schema."""
        parameters = {
            "type": "object",
            "properties": {parameter: {"type": "string"} for parameter in self.parameters},
            "required": list(self.parameters),
        }
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": parameters},
        }

    def refusal(self, arguments: Mapping[str, Any]) -> str | None:
        """What a call with these arguments returns if they are not the tool's; None if they are."""
        if set(arguments) != set(self.parameters) or not all(isinstance(value, str) for value in arguments.values()):
            return f"error: {self.name} takes {', '.join(self.parameters)}"
        return None


@dataclass(frozen=True)
class DeclaredTool:
    """A tool that is not in ``TOOLS``, as its caller declares it (one TypeScript declaration)."""

    name: str
    typescript: str


# Descriptions are short because every prompt with tools pays for them (wording: ours).
TOOLS: dict[str, ToolSpec] = {
    spec.name: spec
    for spec in (
        ToolSpec("ipython", "run Python", ("code",)),
        ToolSpec("search", "look up", ("query",)),
        ToolSpec("open_page", "read a page by its number, in windows 1, 2, ...", ("page", "window")),
        ToolSpec("download", "put a file into the dict files of ipython", ("file",)),
        ToolSpec("create_subagent", "make an agent", ("name", "system_prompt")),
        ToolSpec("assign_task", "give an agent a task; many run at once", ("agent", "prompt")),
    )
}

SWARM_TOOLS = ("create_subagent", "assign_task")


def no_tool(name: str) -> str:
    """What a call returns whose tool was not declared."""
    return f"error: no tool {name}"


def created(name: str) -> str:
    """What ``create_subagent`` returns."""
    return f"{name} created"
