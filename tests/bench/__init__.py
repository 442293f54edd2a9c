"""The bench: imgproxy beside its peers and beside what no program can beat, in one run.

`python tests/bench` stages an image on disk and in a real registry on loopback, lets every
contender serve it in turn (A B C, A B C, …) and prints medians and their ratios. Figures drift
from machine to machine and from hour to hour; the ratio within one run is what stays.

    command     options, the run, the notes on what was left out
    rows        what is measured: the experiments and their measures
    turns       contenders in turn, a warm-up first, medians
    contenders  imgproxy, skopeo and the limits, behind one face
    wire        the two parents: as little work as a parent can do
    archives    Docker archives, and what limits reading them
    loops       what moves the same bytes and does nothing else
    far         a registry at the other end of a long line
    stage       images, registries and certificates under one temporary directory
    child       processes: started alike, limited in time, never left behind
    report      the table and the facts about the machine
    chart       the same as a picture

Standard library only. A program that is not there is noted and its rows are left out.
"""
