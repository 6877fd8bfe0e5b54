"""Asking question sets through a gateway, keeping every answer, and writing what they say.

    sources     question sets by name: files, generated ones, Hugging Face's
    spec        what a run is: tasks, paths, settings
    store       a run's directory: append-only answers that survive any interruption
    client      one question over HTTP, stage by stage
    runner      all of them: bounded, budgeted, resumable
    cost        what is left to do would take
    checker     algebra in a process of its own, so that no answer can hang a run
    report/     HTML, Markdown, LaTeX, JSON; plots
    frames      the same for notebooks, as data frames

For notebooks:

    from gateway.evaluation.frames import open_run
    run = open_run("runs/mine")
    run.answers(), run.stages(), run.summary()
"""
