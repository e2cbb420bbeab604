"""What was written as LoRA."""

from __future__ import annotations

from tdecomp.jobs import ExportReport

__all__ = ["lora_lines"]


def lora_lines(report: ExportReport, folder: str) -> list[str]:
    """Where it is, how true, what is not in it, and how to load it."""
    exact = "exact" if report.names_known else "exact where PEFT finds the names"
    how = exact if report.exact else f"‖factors − LoRA‖/‖factors‖ = {report.departure:.2g}"
    lines = [f"LoRA in {folder}: {report.modules} modules, rank {report.rank}, {how}."]
    if report.truncated:
        lines.append(
            f"{len(report.truncated)} modules needed more than rank {report.max_rank} and "
            f"were truncated by SVD, among them {report.truncated[0]}."
        )
    if report.left_out:
        names = ", ".join(report.left_out)
        lines.append(f"Not in the LoRA (not the weight of a linear module): {names}.")
    if report.refused:
        names = ", ".join(report.refused)
        lines.append(f"Not in the LoRA, as PEFT does not adapt them in such models: {names}.")
    lines += report.notes
    if report.vllm_max_lora_rank is None:
        lines.append("vLLM takes ranks up to 512 only.")
    else:
        lines.append(f"For vLLM: --max-lora-rank {report.vllm_max_lora_rank}.")
    return lines
