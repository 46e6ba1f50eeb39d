BESIDE = "relative"
