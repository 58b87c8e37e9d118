"""The pages in a real browser: drawn, interactive, silent, and reachable without a mouse."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantdraft.record import PromptReplay
from quantdraft.report import write_document
from quantdraft.workflows.select.record import Selection
from quantdraft.workflows.select.view import selection_document
from tests.example_evaluation import alarmed, evaluation, gridded, unmeasured, with_text
from tests.pages import write_comparison, write_report
from tests.workflows.test_select import DEEP, contender, selection_of

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on PATH (Debian: apt install chromium)"
)
HOSTILE = (
    "</script><script>document.title='hit'</script><img src=x onerror=\"document.title='hit'\">"
)
WIDE, NARROW = 1440, 390


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of every kind."""
    root = tmp_path_factory.mktemp("pages")
    made = {
        "go": gridded(),
        "no-go": alarmed(),
        "inconclusive": unmeasured(),
        "hostile": with_text(HOSTILE, HOSTILE),
    }
    for name, each in made.items():
        write_report(each, root / name)
    write_comparison([evaluation("one"), evaluation("two"), unmeasured()], root / "compare")
    write_document(selection_document(choice()), root / "select")
    return {name: root / name / "report.html" for name in (*made, "compare", "select")}


def choice() -> Selection:
    """Two drafts, one under two recipes, on prompts of two domains."""
    made = (
        contender("deep", 0.8, 1.0, traits=DEEP),
        contender("small", 0.7, 0.5),
        contender("small", 0.69, 0.4, recipe="int4"),
    )
    halves = [
        replace(one, run=replace(one.run, prompts=in_two_domains(one.run.prompts))) for one in made
    ]
    return selection_of(*halves)


def in_two_domains(prompts: tuple[PromptReplay, ...]) -> tuple[PromptReplay, ...]:
    return tuple(
        replace(prompt, domain="prose" if at % 2 else "code") for at, prompt in enumerate(prompts)
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


def opened(browser: Any, path: Path, *, width: int = 1440, scheme: str = "light") -> Any:
    """The page after its pictures came alive; it fails on any message and any request."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    context.set_default_timeout(120_000)  # a loaded machine is no failure
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: said.append(asked.url) if asked.url != path.as_uri() else None)
    page.goto(path.as_uri())
    page.evaluate("window.reportReady")
    assert said == []
    return page


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("go", WIDE),
        ("no-go", WIDE),
        ("inconclusive", NARROW),
        ("hostile", NARROW),
        ("compare", NARROW),
        ("select", WIDE),
        ("select", NARROW),
    ],
)
def test_every_picture_is_drawn_and_nothing_sticks_out(
    browser: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    page = opened(browser, pages[name], width=width)
    figures = page.locator("figure.chart")
    assert figures.count() >= 3
    for at in range(figures.count()):
        figure = figures.nth(at)
        assert figure.get_attribute("data-live") == "yes"
        assert figure.locator("svg").count() == 1
        marks = figure.locator("svg .mark-symbol path, svg .mark-rect path, svg .mark-line path")
        assert marks.count() >= 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.title() != "hit"


def test_dark_and_light_differ_in_paper_and_in_pictures(
    browser: Any, pages: dict[str, Path]
) -> None:
    seen = []
    for scheme in ("light", "dark"):
        page = opened(browser, pages["go"], scheme=scheme)
        dot = "getComputedStyle(document.querySelector('#chart-break-even .mark-symbol path')).fill"
        seen.append(
            (page.evaluate("getComputedStyle(document.body).backgroundColor"), page.evaluate(dot))
        )
    assert seen[0][0] == "rgb(255, 255, 255)"
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


@pytest.mark.parametrize("name", ["go", "compare", "select"])
def test_a_phone_shows_every_cell_of_a_table_with_intervals(
    browser: Any, pages: dict[str, Path], name: str
) -> None:
    page = opened(browser, pages[name], width=NARROW)
    tables = page.locator("main > section table.cards:visible, header table.cards")
    assert tables.count() > 0
    outside = """tables => tables.flatMap(table => [...table.querySelectorAll("td, tbody th")])
        .filter(cell => cell.textContent && (cell.getBoundingClientRect().right > innerWidth
            || cell.scrollWidth > cell.clientWidth + 1)).map(cell => cell.textContent)"""
    assert tables.evaluate_all(outside) == []
    if name == "compare":
        pair = page.locator("section tr", has_text="one and two").first
        assert re.search(r"Speed.*×.*to.*Acceptance rate.*to.*(different|apart)", _flat(pair))


def _flat(row: Any) -> str:
    return " ".join(" ".join(row.locator("td").evaluate_all(TITLED)).split())


TITLED = "cells => cells.map(each => `${each.dataset.title} ${each.innerText}`)"


def test_hovering_a_point_tells_its_value(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["go"])
    figure = page.locator("#chart-speedup-by-k")
    figure.scroll_into_view_if_needed()
    figure.locator(".mark-symbol path").first.hover(force=True)
    tip = page.locator("#vg-tooltip-element")
    tip.wait_for(state="visible")
    assert re.search(r"\d\.\d{3}× \(\d\.\d{3}× to", tip.inner_text())


def test_a_menu_shows_one_domain_of_the_prompts(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["go"])
    figure = page.locator("#chart-prompts")
    pale = "els => els.filter(e => parseFloat(e.getAttribute('opacity') ?? 1) < 0.1).length"
    dots = figure.locator(".mark-symbol path")
    assert dots.evaluate_all(pale) == 0
    figure.locator("select").select_option(label="code")
    page.wait_for_timeout(200)
    assert dots.evaluate_all(pale) == 16  # half of the 32 prompts are prose


def test_a_menu_filters_the_responses_to_read(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["hostile"])
    assert page.locator(".passage:visible").count() == 2
    page.locator(".passages select").select_option(label="code")
    assert page.locator(".passage:visible").count() == 1


def test_a_click_in_the_legend_shows_one_recipe(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["compare"])
    figure = page.locator("#chart-lengths-by-k")
    figure.scroll_into_view_if_needed()
    dots = figure.locator(".mark-symbol.role-mark path")
    pale = "els => els.filter(e => parseFloat(e.getAttribute('opacity') ?? 1) < 0.5).length"
    assert dots.evaluate_all(pale) == 0
    figure.locator(".role-legend-symbol path").nth(1).click(force=True)
    page.wait_for_timeout(200)
    assert dots.evaluate_all(pale) > 0


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("go", "light"), ("inconclusive", "dark"), ("compare", "light"), ("select", "dark")],
)
def test_axe_finds_no_serious_violation(
    browser: Any, pages: dict[str, Path], name: str, scheme: str
) -> None:
    from axe_core_python.sync_playwright import Axe

    page = opened(browser, pages[name], scheme=scheme)
    found = Axe().run(page)
    serious = {
        rule["id"]: [node["html"][:200] for node in rule["nodes"][:3]]
        for rule in found["violations"]
        if rule["impact"] in {"serious", "critical"}
    }
    assert serious == {}


def test_without_scripts_the_drawn_pictures_stay(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["go"].as_uri())
    assert page.locator("figure.chart svg").count() == page.locator("figure.chart").count()


def test_paper_shows_the_pictures_in_light_colours(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["go"], scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_paper_unfolds_what_is_folded_and_draws_for_its_width(
    browser: Any, pages: dict[str, Path]
) -> None:
    page = opened(browser, pages["go"])
    wide = "document.querySelector('#chart-break-even svg').getBoundingClientRect().width"
    on_screen = page.evaluate(wide)
    seen = {}
    for event in ("beforeprint", "afterprint"):
        page.evaluate(f"window.dispatchEvent(new Event('{event}'))")
        page.wait_for_timeout(300)
        is_open = "[...document.querySelectorAll('main > details')].map((each) => each.open)"
        seen[event] = page.evaluate(is_open), page.evaluate(wide)
    assert set(seen["beforeprint"][0]) == {True}
    assert seen["beforeprint"][1] == 694  # A4 between its margins
    assert set(seen["afterprint"][0]) == {False}
    assert seen["afterprint"][1] == on_screen > 694
