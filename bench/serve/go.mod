module phalanx/bench-serve

go 1.24
