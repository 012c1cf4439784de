"""The report of a run: `report.json` for machines, `report.html` for people.

The page is one file without scripts or outside references. Everything in it is read from the run's
manifests, results and logs; nothing is measured here except data diversity.

    hornbook report runs/demo
"""

from pathlib import Path

from hornbook.files import write_text
from hornbook.manifest import Outcome, Report, run_stage
from hornbook.recipe import Recipe


def build_report(recipe: Recipe, run_folder: Path) -> Report:
    """Writes `report.json` and `report.html` into the run's folder.

    Args:
        recipe: The run's recipe.
        run_folder: The run.

    Returns:
        The manifest of the report stage.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    from hornbook.errors import need
    from hornbook.report.collect import collect, measured_diversity
    from hornbook.report.page import render

    need("matplotlib", "report")
    root = Path(run_folder).absolute()

    def work(folder: Path) -> Outcome:
        return Outcome(details={"diversity": measured_diversity(recipe, root)})

    # Only what takes time is a stage; the files are written anew each time, with the latest log.
    manifests = sorted(
        path.parent
        for path in root.rglob("manifest.json")
        if path.parent.name != "report" and "rejected" not in path.parts
    )
    made = run_stage("report", root / "report", inputs=manifests, config=recipe, work=work)
    data = collect(recipe, root)
    data["diversity"] = made["details"]["diversity"]
    Report(data).save(root / "report.json")
    write_text(root / "report.html", render(data))
    return made
