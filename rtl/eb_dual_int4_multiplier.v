// Two products with one multiplier: an int8 number times the int4 weights of two rows; Verilog-2005.
//
// p_0 and p_1 show x * w_0 and x * w_1 of the operands before the last rising edge of clk: all 2**16 of them,
// -128 and -8 included, exactly. No reset. One multiplier of 17 x 8 bits is an ECP5's MULT18X18D, or a DSP48E1.
//
// A flow for a device may put a module of its own of this name and these ports in this file's place; nothing
// but the ports and the one cycle is relied on.
//
//   weights          w_1 * 2**12 + w_0, 17 bits
//   weights * x      x * w_1 * 2**12 + x * w_0: a negative x * w_0 borrows 1 from the upper product
//   + 2**11          x * w_0 + 2**11 lies in 0..2**12 - 1, so nothing is borrowed: the upper half is x * w_1,
//                    the lower one x * w_0 with its sign bit inverted

module eb_dual_int4_multiplier (
    input  wire               clk,
    input  wire signed [7:0]  x,
    input  wire signed [3:0]  w_0,
    input  wire signed [3:0]  w_1,
    output wire signed [11:0] p_0,
    output wire signed [11:0] p_1
);
    wire signed [15:0] upper = {w_1, 12'd0};
    wire signed [16:0] weights = upper + w_0;
    reg  signed [23:0] sum_q;

    always @(posedge clk)
        sum_q <= weights * x + 24'sd2048;

    assign p_0 = {~sum_q[11], sum_q[10:0]};
    assign p_1 = sum_q[23:12];
endmodule
