// Two products with one multiplier: a bf16 number's significand times those of two rows' weights, of which four
// bits are enough (int4, e2m1, e4m3); Verilog-2005.
//
// p_0 and p_1 show x * w_0 and x * w_1 of the operands before the last rising edge of clk: all 2**16 of them,
// exactly, unsigned. No reset. One multiplier of 16 x 8 bits and its register are an ECP5's MULT18X18D, or a
// DSP48E1.
//
// A flow for a device may put a module of its own of this name and these ports in this file's place; nothing
// but the ports and the one cycle is relied on.
//
//   weights          w_1 * 2**12 + w_0, 16 bits
//   weights * x      x * w_1 * 2**12 + x * w_0: the lower product is at most 15 * 255, so it carries nothing
//                    into the upper one

module eb_dual_significand_multiplier (
    input  wire        clk,
    input  wire [7:0]  x,
    input  wire [3:0]  w_0,
    input  wire [3:0]  w_1,
    output wire [11:0] p_0,
    output wire [11:0] p_1
);
    wire [15:0] weights = {w_1, 8'd0, w_0};
    reg  [23:0] product_q;

    always @(posedge clk)
        product_q <= weights * x;

    assign p_0 = product_q[11:0];
    assign p_1 = product_q[23:12];
endmodule
