"""The nodes of the DAG, one thin `@task` wrapper a stage; the work lies in the rooms below
(`data`, `training`, `metrics`, `registry`, `drift`), which know nothing of Prefect."""
