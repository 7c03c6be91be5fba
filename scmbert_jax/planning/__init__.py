"""A training step compiled for hardware that is not here: does it fit, what does it move, what would it cost.

| file                 | idea                                                                               |
|----------------------|------------------------------------------------------------------------------------|
| topologies.py        | the machines that are known: chips, memory, speeds, prices                         |
| compiled_step.py     | the real step, compiled for a mesh of such chips; what it keeps in memory          |
| program_text.py      | what a compiled program moves between chips                                        |
| compile_process.py   | all of that in a process of its own, with the settings that a compiler needs       |
| estimate.py          | how long a step would take, and what a number of cells would cost                  |
| plan.py              | these put together, with advice; as text and as JSON                               |
| search.py            | the largest batch and the cheapest remat that fit                                  |
"""
