"""report.html in headless Chromium with the network cut: nothing loaded, nothing failed, readable everywhere."""

import shutil

import pytest

from tcpfleet import reports, runs
from tcpfleet.cli import Options
from tcpfleet.report import write_reports
from tests import report_samples as samples
from tests.browser.chromium import Chromium

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed"),
]

FIFTY = ["server.example", *(f"client-{number:02d}.example" for number in range(49))]
RUNS = {
    "two_seconds_one_host": {
        "record": samples.run("fail", failed=1234, seconds=2),
        "hosts": ["s1"],
        "drops": 1234,
    },
    "a_minute_five_hosts": {"record": samples.run(), "hosts": ["s1", "c1", "c2", "c3", "c4"], "dead": ("c4",)},
    "two_hours_fifty_hosts": {"record": samples.run(seconds=7200), "hosts": FIFTY, "one_machine": False},
    "no_run": {"record": None},
}
CHARTS = ("connections", "connects", "echoes", "connect_time", "response_time", "latency", "spectrum")
CHARTS += ("states_server", "states_client", "cpu", "memory", "tcp_memory", "files")
CHARTS += ("server_connections", "server_cpu", "server_memory", "counters")

# Contrast (WCAG 2, relative luminance) of every element that has text of its own, against the nearest background.
CONTRAST = """
(() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let one = element; one; one = one.parentElement) {
      const found = rgb(getComputedStyle(one).backgroundColor);
      if (found.length === 3 || found[3] > 0.5) return found;
    }
    return [255, 255, 255];
  };
  let worst = [99, ""];
  for (const one of document.querySelectorAll("main *")) {
    if (one.closest("defs") || one.closest("title") || !one.getClientRects().length) continue;
    const own = [...one.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own) continue;
    const style = getComputedStyle(one);
    const ink = one.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(rgb(ink)), light(behind(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, one.outerHTML.slice(0, 120)];
  }
  return worst;
})()
"""


@pytest.fixture(scope="module")
def browser():
    with Chromium(PROGRAM) as found:
        yield found


@pytest.fixture(scope="module", params=RUNS)
def page(request, tmp_path_factory):
    folder = samples.fill(tmp_path_factory.mktemp(request.param), **RUNS[request.param])
    path = write_reports(folder)[0]
    assert path.stat().st_size < 5 << 20
    return request.param, path.as_uri()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_page(browser, page, width, dark, tmp_path):
    name, url = page
    browser.load(url, width=width, dark=dark)
    assert browser.requests() == [url]
    assert browser.problems() == []
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask("document.querySelector('h1').getBoundingClientRect().top") < 200
    assert browser.ask("document.scripts.length") == 0
    ratio, element = browser.ask(CONTRAST)
    assert ratio >= 4.5, element
    background = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(18, 22, 27)" if dark else "rgb(246, 247, 249)")
    for chart in CHARTS if name != "no_run" else ():
        if (name, chart) == ("two_seconds_one_host", "states_client"):
            continue  # its only host is the server
        marks = f"document.querySelectorAll('#chart-{chart} .series path, #chart-{chart} .series circle')"
        sizes = browser.ask(f"[...{marks}].map(one => one.getBoundingClientRect()).map(r => r.width + r.height)")
        # Connects of a short run are done within one step: a dot for each line.
        assert sizes and max(sizes) > (5 if chart == "connect_time" else 100), chart
    shot = tmp_path / "page.png"
    browser.screenshot(shot)
    assert shot.stat().st_size > 10_000


def test_markup_in_fields_stays_text(browser, tmp_path):
    run = dict(samples.poison(samples.run("fail", failed=3)), schema="tcpfleet.run/1", verdict="fail")
    samples.fill(tmp_path, run, hosts=["s1", samples.MARKUP])
    browser.load(write_reports(tmp_path)[0].as_uri(), width=400)
    assert browser.problems() == []
    assert browser.ask("document.querySelectorAll('script, [onclick]').length") == 0
    assert "<script>alert(2)</script>" in browser.ask("document.body.innerText")
    assert browser.ask("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_in_chinese(browser, tmp_path, width):
    url = write_reports(samples.fill(tmp_path, **RUNS["a_minute_five_hosts"]), "zh")[0].as_uri()
    browser.load(url, width=width)
    assert browser.requests() == [url] and browser.problems() == []
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask("document.documentElement.lang") == "zh"
    assert "没有遇到瓶颈" in browser.ask("document.querySelector('h1').innerText")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_the_comparison(browser, tmp_path, monkeypatch, width, dark):
    monkeypatch.setattr(runs, "REPORTS", tmp_path / "reports")
    folders = [samples.fill(tmp_path / name, samples.run(*what)) for name, what in (("a", ()), ("b", ("fail",)))]
    files = reports.compare_reports(Options({}), *map(str, folders)).data["files"]
    url = f"file://{files[0]}"
    browser.load(url, width=width, dark=dark)
    assert browser.requests() == [url] and browser.problems() == []
    assert browser.ask("document.documentElement.scrollWidth") <= width
    ratio, element = browser.ask(CONTRAST)
    assert ratio >= 4.5, element
    for chart in ("open", "connects", "echoes", "connect", "response"):
        assert browser.ask(f"document.querySelectorAll('#chart-{chart} .series path').length") >= 2, chart


def test_prints(browser, page):
    browser.load(page[1], dark=True, width=760)
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert browser.ask("document.documentElement.scrollWidth") <= 760  # nothing is cut off at a sheet's edge
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
    assert len(browser.call("Page.printToPDF", printBackground=False)["data"]) > 10_000
