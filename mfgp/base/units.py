"""Units that labels come in by mistake, and their size in ours."""

FORCE_UNITS = {  # eV/Å
    51.422: "Ha/bohr",
    27.211: "Ha/Å",
    25.711: "Ry/bohr",
    13.606: "Ry/Å",
    1.8897: "eV/bohr",
    1 / 23.061: "kcal/mol/Å",
    1 / 96.485: "kJ/mol/Å",
}
ENERGY_UNITS = {27.2114: "Hartree", 13.6057: "Rydberg", 1 / 23.0605: "kcal/mol", 1 / 96.485: "kJ/mol"}  # eV
