// What the bench (harness.cpp, compiled once) asks of a Verilated top (harness_top.cpp, compiled with it).

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

// Verilated ports of 1..8, 16, 32, 64 bits are plain integers and wider ones arrays of 32-bit words:
// all of them little-endian bytes on the machines that we run on.
struct Port {
    uint8_t* data = nullptr;
    size_t bytes = 0;
    bool input = false;
};

// Make the top, its undefined registers random from `seed`, and return its ports by name.
std::map<std::string, Port> top_open(uint64_t seed, bool trace);
void top_eval();
// Append the present values to the VCD file, which the first call makes.
void top_wave(const char* file, uint64_t time_ns);
void top_close();
