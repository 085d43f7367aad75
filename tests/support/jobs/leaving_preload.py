raise SystemExit("on purpose")
