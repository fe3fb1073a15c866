// The part of the bench that knows the Verilated top; ports.h is generated for it.

#include "harness.h"

#include <memory>

#include "Vdut.h"
#include "ports.h"  // EB_PORTS(IN, OUT)
#include "verilated.h"
#if VM_TRACE
#include "verilated_vcd_c.h"
#endif

namespace {
std::unique_ptr<VerilatedContext> context;
std::unique_ptr<Vdut> top;
#if VM_TRACE
std::unique_ptr<VerilatedVcdC> trace_file;
#endif
}  // namespace

std::map<std::string, Port> top_open(uint64_t seed, bool trace) {
    context = std::make_unique<VerilatedContext>();
    context->randReset(2);
    context->randSeed(static_cast<int>(seed));
    context->traceEverOn(trace);
    top = std::make_unique<Vdut>(context.get());
#if VM_TRACE
    if (trace) {
        trace_file = std::make_unique<VerilatedVcdC>();
        top->trace(trace_file.get(), 99);
    }
#endif
    std::map<std::string, Port> ports;
#define EB_PORT(name, input) ports[#name] = {reinterpret_cast<uint8_t*>(&top->name), sizeof(top->name), input};
#define EB_IN(name) EB_PORT(name, true)
#define EB_OUT(name) EB_PORT(name, false)
    EB_PORTS(EB_IN, EB_OUT)
    return ports;
}

void top_eval() { top->eval(); }

void top_wave([[maybe_unused]] const char* file, [[maybe_unused]] uint64_t time_ns) {
#if VM_TRACE
    if (!trace_file->isOpen()) trace_file->open(file);
    trace_file->dump(time_ns);
#endif
}

void top_close() {
    top->final();
#if VM_TRACE
    if (trace_file) trace_file->close();
    trace_file.reset();  // before the model and the context that it points into
#endif
    top.reset();
    context.reset();
}
