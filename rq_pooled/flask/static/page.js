// Shows times in the visitor's zone, and refreshes the first page every five seconds, as its link "Reload" does.
"use strict";
(() => {
  const INTERVAL = 5000;
  // The visitor's own zone, where the server's was told.
  const localize = () => {
    for (const time of document.querySelectorAll("time[datetime]")) {
      const when = new Date(time.dateTime);
      if (!isNaN(when)) time.title = when.toLocaleString();
    }
  };
  localize();

  // Told once: a reload or a refresh is not to say it again.
  if (new URLSearchParams(location.search).has("did")) {
    const kept = new URLSearchParams(location.search);
    kept.delete("did");
    history.replaceState(null, "", location.pathname + (kept.size ? "?" + kept : "") + location.hash);
  }

  const stale = document.getElementById("stale");
  const pause = document.getElementById("pause");
  const asOf = document.getElementById("as-of");
  let paused = false;
  // Pages of lists stay as they were asked for.
  if (!pause) return;

  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Resume refresh" : "Pause refresh";
  });

  const isInUse = (section) => {
    const active = document.activeElement;
    const selected = getSelection();
    return (active && active !== document.body && section.contains(active)) ||
      (selected && !selected.isCollapsed && section.contains(selected.anchorNode));
  };

  const replace = (fresh) => {
    for (const section of document.querySelectorAll(".live")) {
      const other = fresh.getElementById(section.id);
      // What a person is about to press or to copy stays where it is.
      if (!other || isInUse(section)) continue;
      for (const open of section.querySelectorAll("details[open]")) {
        const same = open.id && other.querySelector("#" + open.id);
        if (same) same.open = true;
      }
      if (section.innerHTML !== other.innerHTML) section.replaceChildren(...other.childNodes);
    }
    asOf.replaceChildren(...fresh.getElementById("as-of").childNodes);
    document.title = fresh.title;
    localize();
  };

  // Old figures never look like new ones.
  const tell = (reason) => {
    document.body.classList.toggle("stale", Boolean(reason));
    stale.hidden = !reason;
    stale.textContent = reason && `${reason}. What you see is as of ${asOf.textContent.trim()}.`;
    if (reason) document.title = `${reason} · rq_pooled`;
  };

  const refresh = async () => {
    if (!paused && !document.hidden) {
      let reason = "";
      try {
        // Not relative: beside a name and password in the address, fetch takes no such path.
        const response = await fetch(location.origin + location.pathname + location.search, { cache: "no-store", credentials: "same-origin" });
        const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
        if (response.ok && fresh.getElementById("as-of")) replace(fresh);
        else reason = fresh.querySelector("h1")?.textContent || `Error ${response.status}`;
      } catch (error) {
        reason = "The application does not answer";
      }
      tell(reason);
    }
    setTimeout(refresh, INTERVAL);
  };
  setTimeout(refresh, INTERVAL);
})();
