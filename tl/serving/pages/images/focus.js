// The keyboard's focus never gets lost: when its element is hidden, disabled or removed, it goes to what took the place.
//
//   keepFocus(() => grid.focus());   // called once; the function focuses what is best on the page as it is then

const canFocus = (one) => one.isConnected && !one.matches(":disabled") && one.checkVisibility({ visibilityProperty: true });

export function keepFocus(fallback) {
  let last = null, frame = null;
  const mend = () => {
    frame = null;
    const now = document.activeElement ?? document.body;
    if (last === null || canFocus(last) || (now !== document.body && canFocus(now))) return;
    const again = last.id && document.getElementById(last.id), dialog = [...document.querySelectorAll("dialog[open]")].at(-1);
    last = null;
    if (again && canFocus(again)) again.focus();
    else if (dialog) dialog.querySelector("[tabindex='-1'], button:not(:disabled)")?.focus();
    else fallback();
  };
  document.addEventListener("focusin", (event) => (last = event.target));
  // Who clicks beside everything wants no element to have the focus.
  document.addEventListener("focusout", () => setTimeout(() => {
    if (document.activeElement === document.body && last !== null && canFocus(last)) last = null;
  }));
  new MutationObserver(() => (frame ??= requestAnimationFrame(mend)))
    .observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ["hidden", "disabled", "class", "open"] });
}
