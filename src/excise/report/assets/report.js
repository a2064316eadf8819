"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const partners = read("palette");
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 520px)");
  const figures = [...document.querySelectorAll("[data-figure]")].map((place) => ({
    place,
    plot: read(place.dataset.figure),
  }));

  // Figures come in the light colours; each has one dark partner.
  const themed = (value, dark) => {
    if (typeof value === "string") return (dark && partners[value]) || value;
    if (Array.isArray(value)) return value.map((item) => themed(item, dark));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, dark)]));
    }
    return value;
  };

  const fitted = (layout) => {
    if (narrow.matches) {
      layout.font.size = 11;
      layout.legend.font.size = 11;
    }
    return layout;
  };

  const draw = (dark) => {
    for (const { place, plot } of figures) {
      const { data, layout } = themed(plot, dark);
      Plotly.react(place, data, fitted(layout), { displayModeBar: false, responsive: true });
    }
  };

  for (const { place } of figures) place.replaceChildren();
  draw(scheme.matches);
  for (const query of [scheme, narrow]) query.addEventListener("change", () => draw(scheme.matches));
  window.addEventListener("beforeprint", () => draw(false));
  window.addEventListener("afterprint", () => draw(scheme.matches));
})();
