BESIDE = "absolute"
