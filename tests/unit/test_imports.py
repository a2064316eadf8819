import json
import subprocess
import sys

HEAVY = ("torch", "transformers", "datasets", "optuna", "plotly", "sklearn", "pandas", "pyarrow", "scipy")


def loaded_after(statement: str) -> set[str]:
    """The heavy packages that are loaded once `statement` has run in a new process."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    modules = json.loads(finished.stdout.splitlines()[-1])
    return {module for module in modules if module in HEAVY}


def test_importing_excise_is_light() -> None:
    assert loaded_after("import excise; dir(excise); excise.ExciseError; excise.__version__") == set()


def test_the_command_line_starts_light() -> None:
    assert loaded_after("import excise.cli.app") == set()


def test_behaviors_and_settings_are_light() -> None:
    assert loaded_after("import excise; excise.Behavior.load('refusal'); excise.RunConfig(model='m')") == set()
