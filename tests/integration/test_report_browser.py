"""The report in a real browser: opened from disk, without a network, in both themes."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from excise.report import write_report
from fake_result import fake_result

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium binary: apt-get install chromium")
DARK = "--blink-settings=preferredColorScheme=0"


def browse(url: str, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page headless, every host name refused; its console goes to stderr."""
    command = [
        CHROMIUM or "",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
        "--virtual-time-budget=10000",
        f"--user-data-dir={profile}",
        *options,
        url,
    ]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console, console
    return done


@pytest.fixture(scope="module", params=[False, True], ids=["projections", "low-rank"])
def report(request, tmp_path_factory) -> Path:
    path, _ = write_report(fake_result(low_rank=request.param), tmp_path_factory.mktemp("report with a space"))
    return path


@pytest.mark.parametrize("options", [(), (DARK, "--window-size=400,900")], ids=["light", "dark and narrow"])
def test_plots_are_drawn(report, tmp_path, options):
    page = browse(report.as_uri(), tmp_path, "--dump-dom", *options).stdout
    for name in ("pareto", "strengths", "separability", "cosines"):
        figure = re.search(rf'<figure[^>]*id="{name}".*?</figure>', page, re.DOTALL)
        assert figure, name
        assert "<svg" in figure[0], f"{name} is not drawn"
        assert "js-plotly-plot" in figure[0]
        assert "needs JavaScript" not in figure[0]
    assert page.count('class="bars"') or page.count('class="point"') > 8
    assert ("rgb(27, 33, 40)" in page) == bool(options)  # the dark card colour, in the figures


def test_an_empty_result_opens_too(tmp_path):
    path, _ = write_report({}, tmp_path / "empty")
    page = browse(path.as_uri(), tmp_path / "profile", "--dump-dom").stdout
    assert "Not both rates were measured" in page
    assert "<svg" not in page


def test_hostile_names_run_nothing(tmp_path):
    attack = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    result = fake_result() | {"model": attack, "behavior": attack, "warnings": [attack]}
    path, _ = write_report(result, tmp_path / "hostile")
    page = browse(path.as_uri(), tmp_path / "profile", "--dump-dom").stdout
    title = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
    assert title
    assert title[1] != "taken"
    assert "<img" not in page


def test_it_prints_and_can_be_photographed(report, tmp_path):
    picture, paper = tmp_path / "report.png", tmp_path / "report.pdf"
    browse(report.as_uri(), tmp_path / "one", f"--screenshot={picture}", "--window-size=1280,1600")
    browse(report.as_uri(), tmp_path / "two", f"--print-to-pdf={paper}", DARK)
    assert picture.stat().st_size > 50_000  # a blank page is smaller
    assert paper.read_bytes().startswith(b"%PDF")
