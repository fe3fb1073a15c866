// Two products with one multiplier: an int8 number times the weights of two rows; Verilog-2005.
//
// p_0 and p_1 show x * w_0 and x * w_1 of the operands before the last rising edge of clk: all 2**24 of them,
// -128 included, exactly. No reset. One multiplier of 25 x 8 bits, its two additions and its register are a
// DSP48E1: pre-adder, 25 x 18 multiplier, adder with a constant, output register.
//
// A flow for a device may put a module of its own of this name and these ports in this file's place; nothing
// but the ports and the one cycle is relied on.
//
//   weights          w_1 * 2**16 + w_0, 25 bits
//   weights * x      x * w_1 * 2**16 + x * w_0: a negative x * w_0 borrows 1 from the upper product
//   + 2**15          x * w_0 + 2**15 lies in 0..2**16 - 1, so nothing is borrowed: the upper half is x * w_1,
//                    the lower one x * w_0 with its sign bit inverted

module eb_dual_multiplier (
    input  wire               clk,
    input  wire signed [7:0]  x,
    input  wire signed [7:0]  w_0,
    input  wire signed [7:0]  w_1,
    output wire signed [15:0] p_0,
    output wire signed [15:0] p_1
);
    wire signed [23:0] upper = {w_1, 16'd0};
    wire signed [24:0] weights = upper + w_0;
    reg  signed [31:0] sum_q;

    always @(posedge clk)
        sum_q <= weights * x + 32'sd32768;

    assign p_0 = {~sum_q[15], sum_q[14:0]};
    assign p_1 = sum_q[31:16];
endmodule
