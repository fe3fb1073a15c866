"""Registers from their description: storage, pulses, clear on write, and the way out to a reader."""

from collections.abc import Mapping, Sequence

from amaranth import Cat, Const, Module, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl.axi.lite import ADDRESS_BITS
from spec.registers import Access, Field, Register


class RegisterBlock(wiring.Component):
    """The registers of a description, one member per field: ``<register>_<field>``, or ``<register>``.

    A register is written in the cycle in which ``we`` is set and read one cycle after its address, as
    :class:`rtl.registers.RegisterFile`. What may be written is asked before
    (:class:`rtl.axi.lite.AddressDecoder`).

    ======================  ============================================================================
    access of the field     member
    ======================  ============================================================================
    read                    In: what is read
    read, write             Out: what was written last
    write, a pulse          Out: 1 in the cycle after 1 was written
    read, write 1 to clear  Out: what is read; In ``<member>_set``: sets a bit, before any clear
    ======================  ============================================================================

    Parameters
    ----------
    registers : their description; a field called ``value`` gives its member the register's name alone.
    constants : values of fields that are only read and never change, by member.

    Members
    -------
    addr : In, wdata : In(32), we : In(1), rdata : Out(32)
    """

    def __init__(self, registers: Sequence[Register], constants: Mapping[str, int] | None = None) -> None:
        self.registers = registers
        self.constants = constants or {}
        members = {"addr": In(ADDRESS_BITS), "wdata": In(32), "we": In(1), "rdata": Out(32)}
        for register in registers:
            for field in register.fields:
                name = member_of(register, field)
                if register.access is Access.READ:
                    if name not in self.constants:
                        members[name] = In(field.width)
                else:
                    members[name] = Out(field.width, init=field.reset)
                if register.access is Access.CLEAR:
                    members[f"{name}_set"] = In(field.width)
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.rdata.eq(0)
        for register in self.registers:
            for field in register.fields:
                if field.pulse:
                    m.d.sync += getattr(self, member_of(register, field)).eq(0)
        with m.Switch(self.addr[2:]):
            for register in self.registers:
                with m.Case(register.address >> 2):
                    if register.access.readable:
                        m.d.sync += self.rdata.eq(self._read(register))
                    if register.access in (Access.WRITE, Access.READ_WRITE):
                        with m.If(self.we):
                            for field in register.fields:
                                m.d.sync += getattr(self, member_of(register, field)).eq(self._written(field))
        for register in self.registers:
            if register.access is Access.CLEAR:
                writes = self.we & (self.addr[2:] == register.address >> 2)
                for field in register.fields:
                    name = member_of(register, field)
                    value = getattr(self, name)
                    cleared = Mux(writes, self._written(field), 0)
                    m.d.sync += value.eq((value & ~cleared) | getattr(self, f"{name}_set"))
        return m

    def _written(self, field: Field):
        return self.wdata[field.low : field.low + field.width]

    def _read(self, register: Register):
        """Return the register's value, its fields at their places."""
        parts, end = [], 0
        for field in register.fields:
            name = member_of(register, field)
            value = (
                Const(self.constants[name], field.width) if name in self.constants else getattr(self, name)
            )
            parts += [Const(0, field.low - end), value]
            end = field.low + field.width
        return Cat(*parts)


def member_of(register: Register, field: Field) -> str:
    """Return the member of :class:`RegisterBlock` that a field is."""
    name = register.name.lower()
    return name if field.name == "value" else f"{name}_{field.name}"
