"""The bench: imgproxy compared with its peers and with lower bounds, in one run.

`python tests/bench` stages an image on disk and in a real registry on loopback, lets every
contender serve it in turn (A B C, A B C, …) and prints medians and their ratios. Figures vary with
the machine and over time; the ratio within one run is stable.

    command     options, the run, the notes on omitted rows
    rows        the experiments
    samples     what one attempt of a contender measures
    turns       contenders in turn, a warm-up first, medians
    contenders  imgproxy, skopeo and the limits, behind one interface
    wire        the two parents, with the least possible work
    archives    Docker archives, and the lower bounds for reading them
    trees       root file systems, and programs that unpack them
    loops       programs that only move the same bytes
    far         a registry behind a line with a long round trip
    stage       images, registries and certificates under one temporary directory
    child       processes: started alike, limited in time, always reaped
    report      the table and the facts about the machine
    chart       the same as a picture

Standard library only. A program that is not installed is noted, and its rows are omitted.
"""
