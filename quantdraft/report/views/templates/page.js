// Puts an interactive picture in the place of each drawn one, and lets the responses be filtered.
// Without scripts, and on paper, the drawn pictures stay.
(() => {
  "use strict";
  const NARROW = 560;
  const PAPER = 694; // px of A4 between its margins: pictures are drawn anew for it, not shrunk
  const views = [];

  async function enliven(figure) {
    const drawn = figure.querySelector(".picture");
    const spec = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    spec.width = "container";
    // A legend is one row where there is room for it, else two columns; labels keep apart.
    if (drawn.clientWidth < NARROW) {
      const layout = { top: { direction: "vertical", anchor: "start", margin: 6 } };
      spec.config.axis = { ...spec.config.axis, labelSeparation: 8 };
      spec.config.legend = { ...spec.config.legend, columns: 2, layout };
    }
    spec.autosize = { type: "fit-x", contains: "padding" };
    const place = document.createElement("div");
    place.className = "live";
    drawn.append(place);
    try {
      const { view } = await vegaEmbed(place, spec, {
        renderer: "svg",
        mode: "vega-lite",
        actions: false,
        ast: true,
        bind: figure.querySelector(".controls"),
        tooltip: { theme: "page" },
      });
      // The frame around it has the words, a table the numbers: the marks say nothing by themselves.
      place.querySelector("svg").setAttribute("aria-hidden", "true");
      [...drawn.children].filter((each) => each !== place).forEach((each) => each.remove());
      figure.dataset.live = "yes";
      views.push([view, place, figure.classList.contains("wide") ? PAPER : PAPER / 2 - 10]);
      return true;
    } catch (error) {
      place.remove();
      console.error(error);
      return false;
    }
  }

  function filterPassages(block) {
    const passages = [...block.querySelectorAll(".passage")];
    const domains = [...new Set(passages.map((each) => each.dataset.domain))].sort();
    if (domains.length < 2) return;
    const label = document.createElement("label");
    const menu = document.createElement("select");
    label.append("Domain: ", menu);
    for (const name of ["all domains", ...domains]) menu.add(new Option(name, name));
    menu.addEventListener("change", () => {
      for (const each of passages) {
        each.hidden = menu.selectedIndex > 0 && each.dataset.domain !== menu.value;
      }
    });
    block.querySelector(".controls").append(label);
  }

  // Paper shows what the page has folded away; the numbers of the pictures stay in the page.
  const folded = [...document.querySelectorAll("main > details")];
  const opened = new Map();
  window.addEventListener("beforeprint", () => {
    for (const each of folded) {
      opened.set(each, each.open);
      each.open = true;
    }
    for (const [view, , width] of views) view.signal("width", width).run();
  });
  window.addEventListener("afterprint", () => {
    for (const each of folded) each.open = opened.get(each);
    for (const [view, place] of views) view.signal("width", place.clientWidth).run();
  });

  document.querySelectorAll(".passages").forEach(filterPassages);
  window.reportReady = Promise.all([...document.querySelectorAll("figure.chart")].map(enliven));
})();
