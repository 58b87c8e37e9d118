// Puts an interactive picture in the place of each drawn one, and lets the responses be filtered.
// Without scripts, and on paper, the drawn pictures stay.
(() => {
  "use strict";

  async function enliven(figure) {
    const drawn = figure.querySelector(".picture");
    const spec = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    spec.width = "container";
    spec.autosize = { type: "fit-x", contains: "padding" };
    const place = document.createElement("div");
    place.className = "live";
    drawn.append(place);
    try {
      await vegaEmbed(place, spec, {
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

  document.querySelectorAll(".passages").forEach(filterPassages);
  window.reportReady = Promise.all([...document.querySelectorAll("figure.chart")].map(enliven));
})();
