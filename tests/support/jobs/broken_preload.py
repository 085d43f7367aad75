raise RuntimeError("on purpose: cannot reach redis://:gAngenHeim@localhost:1/0?password=gAngenHeim")
