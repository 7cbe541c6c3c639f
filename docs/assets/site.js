// Formulas are set by KaTeX where they stand; the extension arithmatex marks them.
for (const each of document.querySelectorAll(".arithmatex")) {
  const text = each.textContent.trim().slice(2, -2); // without \( and \), or \[ and \]
  katex.render(text, each, { displayMode: each.tagName === "DIV", throwOnError: false });
}

// Browsers and screen readers are told which pages are in Ukrainian.
if (new URL(document.baseURI).pathname.includes("/uk/")) {
  document.querySelector("article")?.setAttribute("lang", "uk");
}
